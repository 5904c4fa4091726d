"""The golden cases through HTTP, token for token; log probabilities spell the tokens out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from model.engine.text.detokenizer import Detokenizer
from model.phi3v.inputs.tokenizer import Phi3VTokenizer
from tests.support.engines.golden_data import CASES, user_message
from tests.support.servers.live_server import LiveServer, start_server


@pytest.fixture(scope="module", params=[1, 4, 16])
def crops_server(
    request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, LiveServer]]:
    """A server on the golden checkpoint with the given ``num_crops``."""
    directory = tmp_path_factory.mktemp("golden") / "tiny-phi3v"
    directory.mkdir()
    for file in (golden / "tiny-phi3v").iterdir():
        if file.name != "preprocessor_config.json":
            (directory / file.name).symlink_to(file)
    config = json.loads((golden / "tiny-phi3v" / "preprocessor_config.json").read_text())
    config["num_crops"] = request.param
    (directory / "preprocessor_config.json").write_text(json.dumps(config))
    live = start_server("--model", str(directory), "--dtype", "float32")
    yield request.param, live
    assert live.stop() == 0


@pytest.mark.parametrize("name", CASES)
def test_golden_tokens(
    name: str,
    crops_server: tuple[int, LiveServer],
    golden: Path,
    golden_cases: list[dict[str, Any]],
) -> None:
    num_crops, live = crops_server
    case = next(case for case in golden_cases if case["name"] == name)
    if case["image"] and case["num_crops"] != num_crops:
        # Not this server's case: then its prompt must come out with another length.
        assert ask(live, case, golden)["usage"]["prompt_tokens"] != case["prompt_tokens"]
        return
    messages = wire_messages(case, golden)
    ids = httpx2.post(f"{live.url}/tokenize", json={"messages": messages}).json()["tokens"]
    assert ids == case["input_ids"]
    answer = ask(live, case, golden)
    tokenizer = Phi3VTokenizer(golden / "tiny-phi3v")
    expected = case["greedy_no_cache"]
    assert answer["usage"]["prompt_tokens"] == case["prompt_tokens"]
    tokens = [token["token"] for token in answer["choices"][0]["logprobs"]["content"]]
    assert tokens == [tokenizer.token_text(token_id) for token_id in expected]
    detokenizer = Detokenizer(tokenizer, ())
    text = "".join(detokenizer.add(token_id)[0] for token_id in expected) + detokenizer.finish()[0]
    assert answer["choices"][0]["message"]["content"] == text


def wire_messages(case: dict[str, Any], golden: Path) -> list[dict[str, Any]]:
    message = user_message(case, golden)
    content: Any = message.text
    if case["image"]:
        data = base64.b64encode((golden / "images" / case["image"]).read_bytes()).decode()
        content = [
            {"type": "text", "text": message.text},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        ]
    return [{"role": "user", "content": content}]


def ask(live: LiveServer, case: dict[str, Any], golden: Path) -> dict[str, Any]:
    body = {
        "messages": wire_messages(case, golden),
        "temperature": 0,
        "max_tokens": 64,
        "ignore_eos": True,
        "logprobs": True,
    }
    response = httpx2.post(
        f"{live.url}/chat/completions",
        json=body,
        headers={"extra-parameters": "pass-through"},
        timeout=60,
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_documented_usage_over_http(golden: Path, tmp_path: Path) -> None:
    """Azure's documented 19 tokens: a checkpoint whose control tokens strip, system text folded."""
    from tests.support.engines.tokenizer_files import strip_in

    for file in (golden / "tiny-phi3v").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    strip_in(tmp_path / "tokenizer.json")
    live = start_server("--model", str(tmp_path), "--dtype", "float32")
    try:
        body = {
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": "How many languages are in the world?"},
            ],
            "max_tokens": 1,
        }
        answer = httpx2.post(f"{live.url}/chat/completions", json=body).json()
        assert answer["usage"]["prompt_tokens"] == 19
    finally:
        assert live.stop() == 0
