"""What errors say: in JSON's words, with the remedy, and never much of what was sent."""

from __future__ import annotations

import ast
from typing import Any

import httpx2
import pytest

from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import AUTHORIZED, HELLO, chat, check_error, image_message


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
        assert "send the image as data:image/png;base64," in message


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
    long = "a" * 12_000  # a head may have 16 kB
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


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "parameters",
    [
        {"guided_regex": "(" + "a\x00" * 90_000},
        {"guided_grammar": "start: " + "b" * 180_000},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"type": "x" * 90_000}},
            }
        },
        {"tools": ["x" * 180_000]},
        {"messages": [{"role": "x" * 180_000, "content": ""}] * 10},
        {"messages": [{"role": "user", "content": [{"type": "\U000e0001" * 90_000}]}]},
    ],
)
def test_a_message_is_never_long(
    server: LiveServer, parameters: dict[str, Any], stream: bool
) -> None:
    response = chat(server, "/v1/chat/completions", stream=stream, **parameters)
    body = response.json()
    texts = [body["message"], body["error"]["message"], *(each["msg"] for each in body["detail"])]
    assert response.status_code == 422
    assert all(0 < len(text) <= 1500 for text in texts)
    assert len(response.content) < 50_000


@pytest.mark.parametrize("name", ["k", "\x00", "\U000e0001", "'"])
def test_azures_sentence_stays_whole(server: LiveServer, name: str) -> None:
    """LiteLLM evaluates the list in it."""
    extras: dict[str, Any] = {f"{i}{name * 500}": 1 for i in range(20)}
    message = check_status(chat(server, **extras), 400)["message"]
    assert message.startswith("Extra parameters [")
    assert message.endswith("Set extra-parameters to 'pass-through' to pass to the model.")
    names = ast.literal_eval(message.removeprefix("Extra parameters ").split(" are not allowed")[0])
    assert names == [f"{i}{name * 99}" for i in range(len(names))]


def check_status(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status
    body: dict[str, Any] = response.json()
    return body


def test_an_empty_content_type_is_none(server: LiveServer) -> None:
    assert chat(server, headers={"content-type": ""}, messages=HELLO).status_code == 200
