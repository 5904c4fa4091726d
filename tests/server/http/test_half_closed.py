"""Clients that send nothing after their request: those that wait for the answer, and those that left."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server
from tests.support.servers.raw import connection, everything
from tests.support.servers.wire import AUTHORIZED, HELLO
from tests.support.waiting import eventually

URL = "/v1/chat/completions"
BODY: dict[str, Any] = {
    "messages": HELLO,
    "max_tokens": 40,
    "ignore_eos": True,
    "temperature": 0,
}
STREAM = BODY | {"stream": True, "stream_options": {"include_usage": True}}
LONG = BODY | {"max_tokens": 7000}
Begin = Callable[..., http.client.HTTPConnection]


@pytest.fixture(scope="module")
def live(tiny: Path) -> Iterator[LiveServer]:
    flags = ("--dtype", "float32", "--api-key", API_KEY, "--max-num-seqs", "1")
    live = start_server("--model", str(tiny), *flags)
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


@pytest.fixture
def begin(live: LiveServer) -> Iterator[Begin]:
    """Makes connections on which a request has been sent."""
    with contextlib.ExitStack() as stack:

        def make(body: dict[str, Any], name: str = "unnamed") -> http.client.HTTPConnection:
            made = http.client.HTTPConnection(live.url.removeprefix("http://"), timeout=60)
            stack.callback(made.close)
            made.request("POST", URL, json.dumps(body), AUTHORIZED | {"x-request-id": name})
            return made

        yield make


def half_close(made: http.client.HTTPConnection) -> None:
    made.sock.shutdown(socket.SHUT_WR)


def numbers(live: LiveServer) -> tuple[float, float]:
    """Answers that run, and that wait."""
    text = httpx2.get(f"{live.url}/metrics", headers=AUTHORIZED).text
    running, waiting = (
        float(re.findall(rf"^phi3v_num_requests_{what} (\S+)", text, re.MULTILINE)[0])
        for what in ("running", "waiting")
    )
    return running, waiting


def until(live: LiveServer, wanted: tuple[float, float]) -> None:
    eventually(lambda: numbers(live) == wanted, what=f"{wanted} run and wait")


def test_a_whole_answer(begin: Begin) -> None:
    made = begin(BODY)
    half_close(made)
    with made.getresponse() as answer:
        assert answer.status == 200
        assert json.loads(answer.read())["usage"]["completion_tokens"] == 40


def test_an_error(begin: Begin) -> None:
    made = begin(BODY | {"temperature": 9})
    half_close(made)
    with made.getresponse() as answer:
        assert (answer.status, answer.headers["x-ms-error-code"]) == (422, "invalid_parameter")
        assert json.loads(answer.read())["error"]["param"] == "temperature"


def check_stream(read: bytes) -> None:
    assert read.endswith(b"data: [DONE]\n\n")
    assert b'"completion_tokens":40' in read


def test_a_stream(begin: Begin) -> None:
    made = begin(STREAM)
    half_close(made)
    with made.getresponse() as answer:
        check_stream(answer.read())


def test_a_stream_that_has_begun(begin: Begin) -> None:
    made = begin(STREAM)
    with made.getresponse() as answer:
        first = answer.read(10)
        half_close(made)
        check_stream(first + answer.read())


def test_a_stream_in_the_queue(live: LiveServer, begin: Begin) -> None:
    """Of which nothing comes for a while."""
    ahead = begin(LONG)
    until(live, (1, 0))
    made = begin(STREAM)
    until(live, (1, 1))
    half_close(made)
    assert numbers(live) == (1, 1)
    ahead.close()
    with made.getresponse() as answer:
        check_stream(answer.read())


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_other_routes(live: LiveServer, version: str) -> None:
    ask = f"GET /info HTTP/{version}\r\nHost: x\r\napi-key: {API_KEY}\r\n\r\n".encode()
    for asks in (1, 3):  # a client may send several at once
        with connection(live, asks * ask) as made:
            made.shutdown(socket.SHUT_WR)
            received = everything(made)
        assert received.count(b'"model_name"') == (asks if version == "1.1" else 1)


@pytest.mark.parametrize(
    "part", [b"GET /info HTTP/1.1\r\nHost: x\r\n", b"POST /tokenize HTTP/1.1\r\nHost"]
)
def test_half_a_request_is_none(live: LiveServer, part: bytes) -> None:
    with connection(live, part) as made:
        made.shutdown(socket.SHUT_WR)
        assert everything(made) == b""


def check_that_it_was_left(live: LiveServer, name: str) -> None:
    """The answer to the request of that name was not made to its end."""
    (line,) = eventually(lambda: [line for line in live.log if f"request_id={name} " in line])
    assert "finish_reason=length" not in line


def read_no_more(made: http.client.HTTPConnection) -> None:
    made.sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("leave", [http.client.HTTPConnection.close, read_no_more])
def test_who_has_left_is_not_answered(
    live: LiveServer,
    begin: Begin,
    leave: Callable[[http.client.HTTPConnection], None],
    streamed: bool,
) -> None:
    until(live, (0, 0))
    name = f"{leave.__name__}-{streamed}"
    made = begin(LONG | {"stream": streamed}, name)
    until(live, (1, 0))
    leave(made)
    until(live, (0, 0))
    check_that_it_was_left(live, name)


@pytest.mark.parametrize("streamed", [False, True])
def test_who_leaves_later_is_not_answered(live: LiveServer, begin: Begin, streamed: bool) -> None:
    """First it says that it sends nothing more, then it goes."""
    name = f"later-{streamed}"
    made = begin(LONG | {"stream": streamed, "n": 4}, name)
    half_close(made)
    until(live, (1, 3))
    read_no_more(made)
    until(live, (0, 0))
    check_that_it_was_left(live, name)


@pytest.mark.parametrize("streamed", [False, True])
def test_who_has_left_the_queue(live: LiveServer, begin: Begin, streamed: bool) -> None:
    ahead = begin(LONG)
    until(live, (1, 0))
    queued = begin(LONG | {"stream": streamed})
    until(live, (1, 1))
    queued.close()
    until(live, (1, 0))
    ahead.close()
    until(live, (0, 0))
