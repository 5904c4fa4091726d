"""``POST /tokenize``: the tokens of a conversation without running the model."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import (
    AUTHORIZED,
    HELLO,
    chat,
    check_error,
    data_url,
    image_message,
    png,
)

SYSTEM = {"role": "system", "content": "Be brief."}


def tokenize(server: LiveServer, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}/tokenize", json=body, headers=AUTHORIZED)


@pytest.mark.parametrize(
    "messages", [HELLO, [SYSTEM, *HELLO], [SYSTEM, *image_message(data_url(png(400, 300)))]]
)
def test_count_is_what_usage_says(server: LiveServer, messages: list[Any]) -> None:
    answer = tokenize(server, messages=messages, return_token_strs=True).json()
    usage = chat(server, messages=messages).json()["usage"]
    assert answer["count"] == len(answer["tokens"]) == usage["prompt_tokens"]
    assert answer["max_model_len"] == 8192
    texts = answer["token_strs"]
    assert len(texts) == answer["count"]
    assert texts[:2] == ["<s>", "<|user|>"]
    assert texts[-1] == "<|assistant|>"
    images = [text for text in texts if text == "<|image_1|>"]
    assert len(images) == answer["tokens"].count(-1)
    assert bool(images) == (len(messages) == 2 and isinstance(messages[1]["content"], list))


def test_low_detail_takes_fewer_tokens(server: LiveServer) -> None:
    message = image_message(data_url(png(400, 300)))
    whole = tokenize(server, messages=message).json()["count"]
    message[0]["content"][0]["image_url"]["detail"] = "low"
    assert tokenize(server, messages=message).json()["tokens"].count(-1) == 313 < whole


def test_a_plain_text(server: LiveServer) -> None:
    prompt = "hello <|end|> </s>"
    whole = tokenize(server, prompt=prompt, return_token_strs=True).json()
    assert whole["tokens"][0] == 1
    assert whole["token_strs"][0] == "<s>"
    assert "".join(whole["token_strs"][1:]).strip() == prompt  # typed tags are text
    bare = tokenize(server, prompt=prompt, add_special_tokens=False).json()
    assert bare["tokens"] == whole["tokens"][1:]
    assert bare["token_strs"] is None
    assert tokenize(server, prompt="").json()["tokens"] == [1]


@pytest.mark.parametrize(
    ("body", "status", "loc"),
    [
        ({}, 422, ["messages"]),
        ({"messages": HELLO, "prompt": "x"}, 422, ["messages"]),
        ({"messages": []}, 422, ["messages"]),
        ({"messages": HELLO, "add_generation_prompt": False}, 422, ["add_generation_prompt"]),
        ({"prompt": "many words " * 20_000}, 400, ["messages"]),
        ({"messages": image_message("https://example.com/a.png")}, 422, None),
    ],
)
def test_bad_requests(
    server: LiveServer, body: dict[str, Any], status: int, loc: list[Any] | None
) -> None:
    response = tokenize(server, **body)
    code = response.json()["code"]
    place = ["messages", 0, "content", 0, "image_url", "url"] if loc is None else loc
    check_error(response, status, code, place)
