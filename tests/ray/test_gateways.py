"""Two gateways before two replicas, under Ray Serve."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.ray.ray_server import answering, logged_by, start_ray_server, text_of, until_idle
from tests.ray.streams import Stream, begin, said
from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.wire import AUTHORIZED, chat, check_error
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

GATEWAYS, REPLICAS, ONGOING, QUEUED, CONNECTIONS = 2, 2, 2, 2, 8
SLOTS = REPLICAS * ONGOING // GATEWAYS
LIMITED = {"Authorization": "Bearer a-limited-key"}


@pytest.fixture(scope="module")
def ray_server(tiny: Path) -> Iterator[LiveServer]:
    live = start_ray_server(
        tiny,
        GATEWAYS=str(GATEWAYS),
        MIN_REPLICAS=str(REPLICAS),
        ONGOING_REQUESTS=str(ONGOING),
        QUEUED_REQUESTS=str(QUEUED),
        MAX_CONNECTIONS=str(CONNECTIONS),
        API_KEYS='[limited]\nkey = "a-limited-key"\nconcurrent-requests = 1',
    )
    yield live
    assert live.stop() == 0


def gateway(server: LiveServer, name: str) -> int:
    """The gateway that takes a request now: the one that logs a refusal."""
    headers = {"Authorization": "Bearer wrong", "x-request-id": name}
    check_error(chat(server, headers=headers), 401, "Unauthorized", [])
    return logged_by(server, name)


def test_a_conversation_meets_its_replica_through_either_gateway(ray_server: LiveServer) -> None:
    """Ray hands a request to the gateway that has fewer: not to the one that has a stream."""
    gateways: set[int] = set()
    homes: set[int] = set()
    for number in range(12):
        stream = Stream(
            ray_server, {"x-request-id": f"one-{number}"}, max_tokens=6000, **said(number)
        )
        assert stream.begun.wait(60)
        others = {gateway(ray_server, f"nobody-{number}-{again}") for again in range(3)}
        assert len(others) == 1
        text_of(chat(ray_server, headers={"x-request-id": f"other-{number}"}, **said(number)))
        assert stream.is_alive()
        stream.join()
        assert stream.end == "done"
        home = logged_by(ray_server, f"one-{number}")
        assert logged_by(ray_server, f"other-{number}") == home
        gateways |= others
        homes.add(home)
    assert (len(gateways), len(homes)) == (GATEWAYS, REPLICAS)


def test_slots_and_queues_of_both_are_used_and_no_more(ray_server: LiveServer) -> None:
    until_idle(ray_server)
    streams = begin(ray_server, GATEWAYS * SLOTS, max_tokens=7000)
    streams += [Stream(ray_server, max_tokens=7000) for _ in range(12)]
    eventually(lambda: sum(stream.end == "refused" for stream in streams) == 12 - GATEWAYS * QUEUED)
    with httpx2.Client(base_url=ray_server.url, headers=AUTHORIZED, timeout=5) as client:
        for _ in range(6):
            assert client.get("/health").json() == {"status": "ready"}
            assert "phi3v_num_requests_running" in client.get("/metrics").text
    assert "done" not in [stream.end for stream in streams]
    for stream in streams:
        stream.join()
    ends = [stream.end for stream in streams]
    assert set(ends) == {"done", "refused"}
    assert ends.count("done") == GATEWAYS * (SLOTS + QUEUED)
    assert len({stream.text for stream in streams if stream.end == "done"}) == 1
    for stream in streams:
        if stream.end == "refused":
            assert stream.answer is not None
            assert stream.answer.headers.pop("retry-after") == "1"
            check_error(stream.answer, 429, "too_many_requests", [])


def test_a_callers_limits_hold_through_either_gateway(ray_server: LiveServer) -> None:
    """They go to the gateway that has not its stream, and to the replica that has."""
    until_idle(ray_server)
    stream = Stream(ray_server, LIMITED, max_tokens=7000)
    assert stream.begun.wait(60)
    for _ in range(6):
        refused = chat(ray_server, headers=LIMITED)
        assert refused.headers.pop("retry-after") == "1"
        check_error(refused, 429, "rate_limit_exceeded", [])
    assert stream.is_alive()
    stream.join()
    assert stream.end == "done"
    text_of(chat(ray_server, headers=LIMITED))


def test_a_flooded_gateway_refuses_in_the_apis_words(ray_server: LiveServer) -> None:
    """With requests whose bodies do not end: more than the gateways take, less than twice that."""
    until_idle(ray_server)
    address = ray_server.url.removeprefix("http://")
    host, port = address.split(":")
    head = f"POST /chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: 9\r\n"
    head += f"Authorization: Bearer {API_KEY}\r\n\r\n"
    names = iter(range(1000))

    def ask() -> httpx2.Response:
        return chat(ray_server, headers={"x-request-id": f"flood-{next(names)}"})

    with contextlib.ExitStack() as connections:

        def flood() -> None:
            connection = socket.create_connection((host, int(port)), timeout=60)
            connections.enter_context(connection)
            connection.sendall(head.encode())

        def full() -> bool:
            """Both; where one was sent fewer than it takes, another request may fill it."""
            if all(ask().status_code == 503 for _ in range(8)):
                return True
            flood()
            return False

        for _ in range(GATEWAYS * (SLOTS + QUEUED + CONNECTIONS) + 6):
            flood()
        eventually(full)
        for path in ("/health", "/metrics", "/info"):
            answer = httpx2.get(ray_server.url + path, headers=AUTHORIZED, timeout=5)
            assert answer.headers.pop("retry-after") == "1"
            check_error(answer, 503, "overloaded", [])
        refused = ask()
        assert refused.headers.get_list("x-request-id") == [f"flood-{next(names) - 1}"]
        assert refused.headers.pop("retry-after") == "1"
        message = check_error(refused, 503, "overloaded", [])["error"]["message"]
        limit = SLOTS + QUEUED + CONNECTIONS
        assert message.startswith(f"too many requests in the gateway; the limit is {limit};")
    eventually(lambda: ask().status_code == 200)
    assert len(answering(ray_server)) == REPLICAS
