"""Replicas that come with load and go without it, under Ray Serve."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import httpx2
import pytest

from tests.ray.ray_server import (
    CHANGE,
    answering,
    logged_by,
    replicas,
    start_ray_server,
    text_of,
)
from tests.ray.streams import GREEDY, Stream, said
from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import AUTHORIZED, chat
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ONGOING = 3  # two streams are too few for two replicas
SHORT, LONG = 1500, 6000  # tokens of an answer


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


def whole(server: LiveServer, number: int, tokens: int) -> str:
    """The answer to a conversation."""
    path = "/v1/chat/completions"
    return text_of(chat(server, path, max_tokens=tokens, **GREEDY, **said(number)))


class Talk(threading.Thread):
    """Streams the answer to one conversation again and again, until it is told to stop."""

    def __init__(self, server: LiveServer, number: int, tokens: int) -> None:
        super().__init__(daemon=True)
        self.server, self.number, self.tokens = server, number, tokens
        self.right = whole(server, number, tokens)
        self.streams: list[Stream] = []
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.is_set():
            self.streams.append(Stream(self.server, max_tokens=self.tokens, **said(self.number)))
            self.streams[-1].join()

    def stop(self) -> None:
        """Nothing of what came may be wrong."""
        self.over.set()
        self.join()
        assert {stream.end for stream in self.streams} == {"done"}
        assert {stream.text for stream in self.streams} == {self.right}


def home(server: LiveServer, number: int) -> int:
    """The replica that a conversation is sent to."""
    request_id = f"home-{number}-{uuid.uuid4().hex}"
    text_of(chat(server, headers={"x-request-id": request_id}, **said(number)))
    return logged_by(server, request_id)


def running(server: LiveServer) -> int:
    """Answers that one of the replicas computes; it must tell at once, however full it is."""
    text = httpx2.get(f"{server.url}/metrics", headers=AUTHORIZED, timeout=5).text
    match = re.search(r"^phi3v_num_requests_running (\d+)", text, re.MULTILINE)
    assert match is not None, text
    return int(match[1])


def test_replicas_come_with_load_and_go_without_a_dropped_stream(ray_server: LiveServer) -> None:
    (first,) = replicas(ray_server)
    talks = [Talk(ray_server, number, SHORT) for number in range(6)]
    at_once = []

    def two_answer() -> bool:
        at_once.append(running(ray_server))
        assert httpx2.get(f"{ray_server.url}/health", timeout=5).json() == {"status": "ready"}
        return len(replicas(ray_server)) == 2 and len(answering(ray_server)) == 2

    eventually(two_answer, CHANGE)
    assert median(at_once) <= ONGOING  # others wait, and leave slots to those who ask how it is
    for talk in talks:
        talk.stop()
    homes = {home(ray_server, number): number for number in range(20)}
    assert len(homes) == 2  # both take conversations
    assert {home(ray_server, number): number for number in range(20)} == homes
    talks = [Talk(ray_server, number, LONG) for number in homes.values()]
    eventually(lambda: len(replicas(ray_server)) == 1, CHANGE)
    for talk in talks:
        talk.stop()
    assert [line for line in ray_server.log if re.search(r"to shut down: \d+ ongoing", line)]
    assert replicas(ray_server) == [first]
    assert {home(ray_server, number) for number in range(6)} == {first.pid}
