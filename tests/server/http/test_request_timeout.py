"""Answers that take longer than a request may."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server
from tests.support.servers.wire import AUTHORIZED, HELLO, chat, check_error

ANSWER_SECONDS = 5
LONG: dict[str, Any] = {"messages": HELLO, "max_tokens": 7000, "ignore_eos": True, "n": 8}


@pytest.fixture(scope="module")
def hasty(tiny: Path) -> Iterator[LiveServer]:
    """A server whose answers may not take long."""
    flags = ("--dtype", "float32", "--api-key", API_KEY)
    live = start_server("--model", str(tiny), *flags, "--request-timeout", str(ANSWER_SECONDS))
    assert chat(live).status_code == 200  # what takes long at the first answer is behind it
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


def test_an_answer_that_takes_too_long(hasty: LiveServer) -> None:
    url = f"{hasty.url}/v1/chat/completions"
    started = time.monotonic()
    response = httpx2.post(url, json=LONG, headers=AUTHORIZED, timeout=60)
    assert ANSWER_SECONDS - 0.5 < time.monotonic() - started < ANSWER_SECONDS + 25
    body = check_error(response, 408, "request_timeout", [])
    assert f"longer than the limit of {ANSWER_SECONDS} seconds" in body["message"]
    assert response.headers["x-should-retry"] == "false"


def test_a_stream_that_takes_too_long(hasty: LiveServer) -> None:
    url = f"{hasty.url}/v1/chat/completions"
    lines: list[str] = []
    body = LONG | {"stream": True}
    with httpx2.stream("POST", url, json=body, headers=AUTHORIZED, timeout=60) as response:
        assert response.status_code == 200
        with pytest.raises(httpx2.RemoteProtocolError):
            lines.extend(line for line in response.iter_lines() if line)
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "request_timeout"
    assert len(lines) > 3
