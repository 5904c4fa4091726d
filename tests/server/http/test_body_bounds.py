"""What bodies may hold, alone and together, and what may wait of those that are answered."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import httpx2
import pytest

from tests.server.http.bounds import HEAD
from tests.support.servers.live_server import LiveServer
from tests.support.servers.raw import connection
from tests.support.servers.wire import AUTHORIZED, chat, check_error, data_url, image_message, png
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def test_bodies_that_are_held(bounded: LiveServer) -> None:
    """Large ones that arrive together; a small one in between is served."""
    head = HEAD + b"Content-Length: 2900000\r\n\r\n"

    def second_is_refused() -> bool:
        with connection(bounded, head, b" " * 2_800_000):  # it may be cut off too soon
            with connection(bounded, head, b" " * 2_900_000) as second:
                answer = second.recv(4096)
            assert chat(bounded).status_code == 200
        return answer.startswith(b"HTTP/1.1 429")

    eventually(second_is_refused)


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 100_000):
        yield b" " * 100_000


def test_bodies_without_a_length(bounded: LiveServer) -> None:
    url = f"{bounded.url}/v1/chat/completions"
    response = httpx2.post(url, content=chunks(4_000_000), headers=AUTHORIZED)
    check_error(response, 413, "request_too_large", [])


@pytest.mark.parametrize("messages", ["text", "images"])
def test_what_waits_is_bounded(bounded: LiveServer, messages: str) -> None:
    """Tokens and images in flight; when their readers have left there is room again."""
    text = [{"role": "user", "content": "word " * 400}]
    content = text if messages == "text" else image_message(data_url(png(700, 700)))
    url = f"{bounded.url}/v1/chat/completions"
    body = {"messages": content, "max_tokens": 7000, "ignore_eos": True, "stream": True}
    with contextlib.ExitStack() as stack:
        asked = (
            stack.enter_context(httpx2.stream("POST", url, json=body, headers=AUTHORIZED))
            for _ in range(6)
        )
        refused = next(answer for answer in asked if answer.status_code != 200)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert "in flight" in json.loads(refused.read())["message"]
    eventually(lambda: chat(bounded, messages=content).status_code == 200)


def test_too_many_images(bounded: LiveServer) -> None:
    turns = [*image_message(data_url(png(40, 30))), {"role": "assistant", "content": "x"}]
    body = {"messages": turns * 4, "max_tokens": 2}
    url = f"{bounded.url}/v1/chat/completions"
    response = httpx2.post(url, json=body, headers=AUTHORIZED)
    loc = ["messages", 6, "content", 0, "image_url", "url"]
    check_error(response, 422, "too_many_images", loc)


@pytest.mark.parametrize("depth", [50, 500, 100_000])
def test_deep_json(bounded: LiveServer, depth: int) -> None:
    content = b'{"messages":' + b"[" * depth + b"]" * depth + b"}"
    url = f"{bounded.url}/v1/chat/completions"
    response = httpx2.post(url, content=content, headers=AUTHORIZED)
    assert response.status_code in (400, 422)
    assert response.json()["code"] in ("invalid_json", "invalid_parameter")
