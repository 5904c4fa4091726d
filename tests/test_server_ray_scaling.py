"""Replicas that come with load and go without it, under Ray Serve."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from live_server import LiveServer
from ray_server import answering, logged_by, replicas, start_ray_server, text_of, wait_for
from ray_streams import GREEDY, Stream
from wire import AUTHORIZED, chat

pytest.importorskip("ray", reason="Ray is not installed: scripts/setup dev")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ONGOING = 3  # two streams are too few for two replicas
TOKENS = 1500


@pytest.fixture(scope="module")
def ray_server(tiny: Path) -> Iterator[LiveServer]:
    live = start_ray_server(
        tiny,
        MIN_REPLICAS="1",
        MAX_REPLICAS="2",
        ONGOING_REQUESTS=str(ONGOING),
        UPSCALE_DELAY="1",
        DOWNSCALE_DELAY="1",
    )
    yield live
    assert live.stop() == 0


def said(number: int) -> dict[str, Any]:
    """A conversation, as chat takes it."""
    return {"messages": [{"role": "user", "content": f"question {number}"}]}


class Talk(threading.Thread):
    """Streams the answer to one conversation again and again, until it is told to stop."""

    def __init__(self, server: LiveServer, number: int) -> None:
        super().__init__(daemon=True)
        self.server, self.number = server, number
        self.streams: list[Stream] = []
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.is_set():
            self.streams.append(Stream(self.server, max_tokens=TOKENS, **said(self.number)))
            self.streams[-1].join()

    def stop(self) -> None:
        self.over.set()
        self.join()


def whole(server: LiveServer, number: int) -> str:
    """The answer to a conversation."""
    path = "/v1/chat/completions"
    return text_of(chat(server, path, max_tokens=TOKENS, **GREEDY, **said(number)))


def home(server: LiveServer, number: int) -> int:
    """The replica that a conversation is sent to."""
    request_id = f"home-{number}-{time.monotonic_ns()}"
    text_of(chat(server, headers={"x-request-id": request_id}, **said(number)))
    return logged_by(server, request_id)


def running(server: LiveServer) -> int:
    """Answers that one of the replicas computes; it must tell at once, however full it is."""
    text = httpx2.get(f"{server.url}/metrics", headers=AUTHORIZED, timeout=5).text
    match = re.search(r"^phi3v_num_requests_running (\d+)", text, re.MULTILINE)
    assert match is not None, text
    return int(match[1])


def test_replicas_come_with_load_and_go_without_a_dropped_stream(ray_server: LiveServer) -> None:
    right = [whole(ray_server, number) for number in range(6)]
    (first,) = replicas(ray_server)
    talks = [Talk(ray_server, number) for number in range(6)]

    def two_answer() -> bool:
        assert running(ray_server) <= ONGOING
        assert httpx2.get(f"{ray_server.url}/health", timeout=5).json() == {"status": "ready"}
        return len(replicas(ray_server)) == 2 and answering(ray_server) == 2

    wait_for(two_answer)
    for talk in talks:
        talk.stop()
    homes = {home(ray_server, number): number for number in range(20)}
    assert len(homes) == 2  # both take conversations
    assert {home(ray_server, number): number for number in range(20)} == homes
    right += [whole(ray_server, number) for number in range(6, 20)]
    talks += [Talk(ray_server, number) for number in homes.values()]
    wait_for(lambda: len(replicas(ray_server)) == 1)
    for talk in talks:
        talk.stop()
        assert {stream.end for stream in talk.streams} == {"done"}
        assert {stream.text for stream in talk.streams} == {right[talk.number]}
    assert [line for line in ray_server.log if re.search(r"to shut down: \d+ ongoing", line)]
    assert replicas(ray_server) == [first]
    assert {home(ray_server, number) for number in range(6)} == {first.pid}
