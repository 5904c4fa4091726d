"""Clients that go away at any moment: their neighbour hears nothing of it, and nothing is left."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.servers.confined_workers import workers
from tests.support.servers.live_server import LiveServer, check_log, start_server
from tests.support.servers.raw import up_to
from tests.support.servers.wire import HELLO, chart, data_url, image_message, png
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow  # in all

SEATS = 2  # answers computed at a time
TIMES = 3
WARM = 8  # requests at a time
ANSWER: dict[str, Any] = {
    "messages": HELLO,
    "max_tokens": 7000,  # it outlasts all leaves on any machine
    "temperature": 0,
    "ignore_eos": True,
}
STREAM = ANSWER | {"stream": True}
URL = "/v1/chat/completions"
LARGE = data_url(png(5000, 4000))  # a few kB that become 60 MB


@pytest.fixture(scope="module")
def live(tiny: Path) -> Iterator[LiveServer]:
    live = start_server(*("--model", str(tiny), "--dtype", "float32", "--max-num-seqs", str(SEATS)))
    with ThreadPoolExecutor(WARM) as pool:  # all threads and decoders that there will be
        body = ANSWER | {"messages": image_message(chart()), "max_tokens": 1}
        for answer in pool.map(lambda _: post(live, body), range(2 * WARM)):
            assert answer.status_code == 200
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


def post(live: LiveServer, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(live.url + URL, json=body, timeout=200)


def numbers(live: LiveServer) -> tuple[float, ...]:
    """Answers that run, answers that wait, and blocks that they hold."""
    text = httpx2.get(f"{live.url}/metrics", timeout=60).text
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    names = ("num_requests_running", "num_requests_waiting", "kv_blocks_used")
    return tuple(found[f"phi3v_{name}"] for name in names)


@contextlib.contextmanager
def connection(
    live: LiveServer, body: dict[str, Any], part: float = 1.0
) -> Iterator[socket.socket]:
    """One on which a request, or a part of its body, has been sent to a server that reads it."""
    content = json.dumps(body).encode()
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as made:
        head = f"POST {URL} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(content)}\r\nExpect: 100-continue\r\n\r\n"
        made.sendall(head.encode())
        assert up_to(made, b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        made.sendall(content[: int(part * len(content))])
        yield made


def in_the_upload(live: LiveServer) -> None:
    with connection(live, ANSWER | {"messages": image_message(chart())}, part=0.5):
        pass


def in_the_preparation(live: LiveServer) -> None:
    """Of an image that takes longer to decode and cut up than its client stays."""
    decoders = workers(psutil.Process(live.process.pid))
    before = computed(decoders)
    with connection(live, ANSWER | {"messages": image_message(LARGE)}):
        eventually(lambda: computed(decoders) > before)


def computed(processes: list[psutil.Process]) -> float:
    """Seconds that processes have computed so far."""
    return sum(process.cpu_times().user for process in processes)


def in_the_stream(live: LiveServer) -> None:
    with connection(live, STREAM) as made:
        assert made.recv(1000).startswith(b"HTTP/1.1 200")


def before_the_whole_answer(live: LiveServer) -> None:
    with connection(live, ANSWER):
        eventually(lambda: numbers(live)[0] == 2)  # with the neighbour


def in_the_queue(live: LiveServer) -> None:
    with connection(live, STREAM) as seated:
        assert seated.recv(1000).startswith(b"HTTP/1.1 200")
        eventually(lambda: numbers(live)[0] == SEATS)
        with connection(live, STREAM):
            eventually(lambda: numbers(live)[1] == 1)
        eventually(lambda: numbers(live)[:2] == (SEATS, 0))


class Neighbour:
    """One who reads a stream until it is told to stop, or to the end."""

    def __init__(self, live: LiveServer) -> None:
        self.texts: list[str] = []
        self.ended = False
        self.told = threading.Event()
        self.live = live

    def read(self) -> None:
        with httpx2.stream("POST", self.live.url + URL, json=STREAM, timeout=200) as response:
            for line in response.iter_lines():
                if self.told.is_set():
                    return
                if line.startswith("data: {"):
                    for choice in json.loads(line.removeprefix("data: "))["choices"]:
                        self.texts.append(choice["delta"].get("content") or "")
                self.ended = self.ended or line == "data: [DONE]"


@pytest.fixture(scope="module")
def alone(live: LiveServer) -> str:
    """The neighbour's answer when nobody else is there."""
    neighbour = Neighbour(live)
    neighbour.read()
    assert neighbour.ended
    return "".join(neighbour.texts)


@pytest.mark.parametrize(
    "leave",
    [in_the_upload, in_the_preparation, in_the_stream, before_the_whole_answer, in_the_queue],
)
def test_clients_that_leave(
    live: LiveServer, alone: str, leave: Callable[[LiveServer], None]
) -> None:
    eventually(lambda: numbers(live) == (0, 0, 0))
    process = psutil.Process(live.process.pid)
    threads, files = process.num_threads(), process.num_fds()
    neighbour = Neighbour(live)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(neighbour.read)
        try:
            eventually(lambda: neighbour.texts)
            for _ in range(TIMES):
                leave(live)
            read = len(neighbour.texts)
            eventually(lambda: len(neighbour.texts) > read)
        finally:
            neighbour.told.set()
        reading.result(200)
    assert not neighbour.ended
    assert alone.startswith("".join(neighbour.texts))
    eventually(lambda: numbers(live) == (0, 0, 0))
    assert httpx2.get(f"{live.url}/health").json() == {"status": "ready"}
    eventually(lambda: process.num_threads() <= threads and process.num_fds() <= files)
