"""What errors say: in JSON's words, with the remedy, and never much of what was sent."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from live_server import LiveServer
from wire import AUTHORIZED, HELLO, chat, check_error, image_message


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"messages": ["hi"]}, "messages.0: Input should be an object"),
        ({"messages": "hi"}, "messages: Input should be a list"),
        ({"messages": []}, "messages: List should have at least 1 item, not 0"),
        ({"logit_bias": []}, "logit_bias: Input should be an object"),
        ({"response_format": 5}, "response_format: Input should be an object"),
        ({"stop": ["x"] * 33}, "stop: List should have at most 32 items, not 33"),
    ],
)
def test_types_by_their_names_in_json(
    server: LiveServer, parameters: dict[str, Any], message: str
) -> None:
    assert chat(server, **parameters).json()["message"] == message


def test_what_to_send_instead_of_a_remote_image(server: LiveServer) -> None:
    for url in ("https://page.example/a.png", "data:image/svg+xml;base64,AAAA"):
        message = chat(server, messages=image_message(url)).json()["message"]
        assert "send the file itself as data:image/png;base64," in message


def test_a_long_prompt_in_the_words_that_clients_look_for(server: LiveServer) -> None:
    """LiteLLM makes its ContextWindowExceededError of them, which can fall back to other models."""
    response = chat(server, messages=[{"role": "user", "content": "many words " * 20_000}])
    assert "this model's maximum context length is 8192 tokens" in response.json()["message"]


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe"])
def test_a_byte_order_mark_is_called_one(server: LiveServer, mark: bytes) -> None:
    url = f"{server.url}/chat/completions"
    response = httpx2.post(url, content=mark + b"{}", headers=AUTHORIZED)
    assert "byte order mark" in check_error(response, 400, "invalid_json", [])["message"]


def test_little_of_what_was_sent_is_repeated(server: LiveServer) -> None:
    long = "a" * 20_000
    number = int("9" * 4000)
    responses = [
        httpx2.get(f"{server.url}/{long}", headers=AUTHORIZED),
        httpx2.request(long[:9000], f"{server.url}/info", headers=AUTHORIZED),
        chat(server, headers={"content-type": long}),
        chat(server, headers={"extra-parameters": long}),
        chat(server, max_tokens=-number),
        chat(server, colour=number),
        chat(server, stop=[long]),
    ]
    for response, status in zip(responses, [404, 405, 415, 400, 422, 400, 422], strict=True):
        assert response.status_code == status
        assert len(response.content) < 2000


def test_an_empty_content_type_is_none(server: LiveServer) -> None:
    assert chat(server, headers={"content-type": ""}, messages=HELLO).status_code == 200
