"""What others notice while a server is given something hostile: streams and the health check."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import AUTHORIZED

STREAM: dict[str, Any] = {
    "messages": [{"role": "user", "content": "tell me something long"}],
    "max_tokens": 60,
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
}
# By the clock: a server that is frozen is silent for longer on any machine.
FROZEN = 5.0


@dataclass
class Noticed:
    """What was seen beside.

    Attributes:
        longest: seconds that a health check took, or that a stream paused, at most.
        texts: of the streams that ended meanwhile.
        problems: whatever failed.
    """

    longest: float = 0.0
    texts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def took(self, seconds: float) -> None:
        self.longest = max(self.longest, seconds)


def stream(server: LiveServer, noticed: Noticed | None = None, **more: Any) -> str:
    """The text of a stream, and how long it paused."""
    text, body, last = "", STREAM | more, None
    url = f"{server.url}/v1/chat/completions"
    with httpx2.stream("POST", url, json=body, headers=AUTHORIZED, timeout=120) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if noticed is not None and last is not None:
                noticed.took(time.perf_counter() - last)
            last = time.perf_counter()
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                text += "".join(c["delta"].get("content") or "" for c in chunk["choices"])
    return text


@contextmanager
def watched(server: LiveServer) -> Iterator[Noticed]:
    """Streams and health checks run until the block ends; all must be as they are without it."""
    expected, noticed, over = stream(server), Noticed(), threading.Event()

    def check_health() -> None:
        with httpx2.Client(timeout=60) as client:
            while not over.wait(0.02):
                started = time.perf_counter()
                assert client.get(f"{server.url}/health/live").status_code == 200
                noticed.took(time.perf_counter() - started)

    def read_streams() -> None:
        while not over.is_set():
            noticed.texts.append(stream(server, noticed))

    def guarded(work: Any) -> None:
        try:
            work()
        except Exception as error:
            noticed.problems.append(repr(error))

    threads = [
        threading.Thread(target=guarded, args=(work,)) for work in (check_health, read_streams)
    ]
    for thread in threads:
        thread.start()
    try:
        yield noticed
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not noticed.problems
    assert set(noticed.texts) == {expected}
    assert noticed.longest < FROZEN
