"""A neighbour of the tests of bad requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import AUTHORIZED, HELLO


@pytest.fixture(scope="module")
def undisturbed(server: LiveServer) -> Iterator[None]:
    """A stream that runs beside all tests of a module and must come out as it does alone."""
    body = {
        "messages": HELLO,
        "max_tokens": 2500,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    lines: list[str] = []

    def read() -> None:
        with httpx2.stream(
            "POST", f"{server.url}/v1/chat/completions", json=body, headers=AUTHORIZED, timeout=300
        ) as response:
            lines.extend(line for line in response.iter_lines() if line)

    reader = threading.Thread(target=read)
    reader.start()
    yield
    reader.join(300)
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 2500
