"""Default parameters of a checkpoint: read, refused if broken, and used where a request names none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from model import check_checkpoint
from model.engine.loading.load import describe
from model.errors import CheckpointError
from model.phi3v.defaults import default_parameters
from tests.support.servers.live_server import LiveServer, check_log, start_server
from tests.support.servers.wire import HELLO

CONFIG = {"temperature": 0.0, "top_k": 5, "max_new_tokens": 7, "eos_token_id": 2, "do_sample": True}


def written(directory: Path, config: Any) -> Path:
    (directory / "generation_config.json").write_text(json.dumps(config), "utf-8")
    return directory


def test_names_are_those_of_requests(tmp_path: Path, tiny: Path, official: Path) -> None:
    found = default_parameters(written(tmp_path, {**CONFIG, "top_p": 1, "min_p": None}))
    assert found == {"temperature": 0, "top_k": 5, "max_tokens": 7, "top_p": 1}
    assert default_parameters(tmp_path / "nowhere") == {}
    assert default_parameters(official) == {}
    assert describe(tiny, "x").default_parameters == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 3),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", -0.1),
        ("top_p", float("nan")),
        ("top_k", 1.5),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    written(tmp_path, {name: value})
    with pytest.raises(CheckpointError, match=rf"{name} = .*--generation-config none"):
        default_parameters(tmp_path)
    (found,) = [each for each in check_checkpoint(tmp_path) if "generation" in each.subject]
    assert not found.ok


@pytest.fixture(scope="module", params=["auto", "none"])
def server(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[LiveServer, bool]]:
    """A server on such a checkpoint, and whether it heeds the defaults."""
    directory = tmp_path_factory.mktemp("checkpoint")
    for file in tiny.iterdir():
        if file.name != "generation_config.json":
            (directory / file.name).symlink_to(file)
    written(directory, CONFIG)
    flags = ("--dtype", "float32", "--generation-config", request.param)
    live = start_server("--model", str(directory), *flags)
    yield live, request.param == "auto"
    assert live.stop() == 0
    check_log("".join(live.log))


def test_requests_get_them_unless_they_say_otherwise(server: tuple[LiveServer, bool]) -> None:
    live, heeds = server

    def answer(**body: Any) -> Any:
        body = {"messages": HELLO, "ignore_eos": True, "stop": ["zzz"], **body}
        return httpx2.post(f"{live.url}/v1/chat/completions", json=body).json()

    def text(**body: Any) -> str:
        return str(answer(max_tokens=8, **body)["choices"][0]["message"]["content"])

    (card,) = httpx2.get(f"{live.url}/v1/models").json()["data"]
    expected = {"temperature": 0, "top_k": 5, "max_tokens": 7} if heeds else {}
    assert card["default_parameters"] == expected
    greedy = text(temperature=0)
    assert (text(seed=1) == greedy) == heeds
    assert text(seed=1, temperature=2, top_k=0) != greedy
    if heeds:
        assert answer()["usage"]["completion_tokens"] == 7
        assert answer(temperature=None)["usage"]["completion_tokens"] == 7
    assert answer(max_completion_tokens=9)["usage"]["completion_tokens"] == 9
