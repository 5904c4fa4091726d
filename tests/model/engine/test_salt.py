"""What one caller computes, another finds only where they share a salt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from model.engine.engine import Engine
from model.engine.request import SamplingParams, TextDelta
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.processing import PromptInputs
from tests.support.servers.live_server import LiveServer, start_server
from tests.support.servers.wire import check_error, data_url, png

LONG = [{"role": "user", "content": "the quick brown fox jumps over the lazy dog " * 12}]
MakeEngine = Callable[..., Engine]


def salted(salt: str) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, cache_salt=salt)


def picture(engine: Engine) -> PromptInputs:
    image = MessageImage(lambda: Image.new("RGB", (300, 300), "red"))
    return engine.processor([Message("user", "look", (image,))], 2000)


def run(engine: Engine, *requests: tuple[PromptInputs, str]) -> list[list[int]]:
    """The tokens of each request's answer."""
    answers: list[list[int]] = [[] for _ in requests]
    for i, (prompt, salt) in enumerate(requests):
        engine.add(i, prompt, salted(salt))
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output.result, TextDelta)
            answers[output.key[0]] += output.result.token_ids
    return answers


def test_blocks_are_found_within_a_salt(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = PromptInputs([1, *range(400, 500)])
    found, answers = [], []
    for salt in ("", "a", "b", "", "a", "b"):
        before = engine.stats().totals.cached_tokens
        answers += run(engine, (prompt, salt))
        found.append(engine.stats().totals.cached_tokens - before)
    assert found == [0, 0, 0, 96, 96, 96]
    assert answers == answers[:1] * 6


def test_embeddings_are_found_within_a_salt(make_engine: MakeEngine) -> None:
    engine = make_engine(prefix_caching=False)
    prompt = picture(engine)
    answers = []
    for salt, computed, hits in (("a", 1, 0), ("a", 1, 1), ("b", 2, 1), ("", 3, 1), ("b", 3, 2)):
        answers += run(engine, (prompt, salt))
        stats = engine.stats()
        assert (stats.images_computed, stats.embedding_hits) == (computed, hits), salt
    assert answers == answers[:1] * 5


def test_images_on_their_way_are_not_shared_either(make_engine: MakeEngine) -> None:
    engine = make_engine(embedding_cache_memory=0, prefix_caching=False)
    prompt = picture(engine)
    answers = run(engine, (prompt, "a"), (prompt, "b"), (prompt, "a"))
    assert answers == answers[:1] * 3
    assert engine.stats().images_computed >= 2


@pytest.fixture(scope="module")
def live(tiny: Path) -> Iterator[LiveServer]:
    live = start_server(
        *("--model", str(tiny), "--isolate-caches"),
        PHI3V_API_KEYS='alice = "alice-key"\nbob = "bob-key"',
    )
    yield live
    assert live.stop() == 0


def ask(
    live: LiveServer, key: str, path: str = "/v1/chat/completions", **body: Any
) -> httpx2.Response:
    return httpx2.post(
        live.url + path,
        json={"messages": LONG, "max_tokens": 1, **body},
        headers={"api-key": key},
        timeout=120,
    )


def cached(live: LiveServer, key: str, **body: Any) -> int:
    usage = ask(live, key, **body).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def test_callers_share_nothing_when_isolated(live: LiveServer) -> None:
    assert cached(live, "alice-key") == 0
    again = cached(live, "alice-key")
    assert again > 50
    assert cached(live, "bob-key") == 0
    assert cached(live, "bob-key") == again


def test_nor_images(live: LiveServer) -> None:
    parts = [{"type": "image_url", "image_url": {"url": data_url(png(200, 300))}}]
    messages = [{"role": "user", "content": parts}]
    assert cached(live, "alice-key", messages=messages) < 17
    assert cached(live, "alice-key", messages=messages) > 100
    assert cached(live, "bob-key", messages=messages) < 17


def test_cache_salt(server: LiveServer) -> None:
    """Of one caller's requests, here with caches that are not isolated."""
    key = server.key
    assert cached(server, key, cache_salt="mine") == 0
    again = cached(server, key, cache_salt="mine")
    assert again > 50
    assert cached(server, key, cache_salt="yours") == 0
    assert cached(server, key) == 0
    assert cached(server, key) == again


@pytest.mark.parametrize("salt", ["", "x" * 257, 5, ["x"]])
def test_a_salt_that_cannot_be_one(server: LiveServer, salt: Any) -> None:
    refused = ask(server, server.key, cache_salt=salt)
    check_error(refused, 422, "invalid_parameter", ["cache_salt"])


def test_a_salt_is_an_extra_parameter_of_azures(server: LiveServer) -> None:
    refused = ask(server, server.key, "/chat/completions", cache_salt="x")
    check_error(refused, 400, "extra_forbidden", ["cache_salt"])
