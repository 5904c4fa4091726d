"""Connections of clients that are slow, deaf, or speak no HTTP: how long they may go on."""

from __future__ import annotations

import contextlib
import time

import psutil
import pytest

from tests.server.http.bounds import HEAD, SECONDS
from tests.support.servers.live_server import LiveServer
from tests.support.servers.raw import check_raw, connection, everything
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left")


@pytest.mark.parametrize(
    ("parts", "drip"),
    [
        ([], b""),
        ([b"POST /v1/chat"], b""),
        ([HEAD], b"x-header: 1\r\n"),
        ([b"\r\n"], b""),
    ],
    ids=["nothing", "a piece", "headers without end", "an empty line"],
)
def test_slow_heads(bounded: LiveServer, parts: list[bytes], drip: bytes) -> None:
    started = time.monotonic()
    with connection(bounded, *parts) as made:
        if drip:
            with contextlib.suppress(OSError):
                while time.monotonic() < started + SECONDS + 3:
                    made.sendall(drip)
                    time.sleep(0.2)
        received = everything(made)
    assert time.monotonic() - started < SECONDS + 20
    if received.startswith(b"HTTP/1.1 400"):  # an empty line is no request
        check_raw(received, 400, "bad_request")
    else:
        check_raw(received, 408, "request_timeout")


@pytest.mark.parametrize("how", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("drips", [False, True])
def test_slow_bodies(bounded: LiveServer, how: str, drips: bool) -> None:
    started = time.monotonic()
    drip = b"1\r\n \r\n" if "chunked" in how else b" "
    with connection(bounded, HEAD + how.encode() + b"\r\n\r\n") as made:
        made.settimeout(0.2)
        received = b""
        while time.monotonic() < started + SECONDS + 3 and not received:
            with contextlib.suppress(TimeoutError):
                if drips:
                    made.sendall(drip)
                received = made.recv(65536)
        made.settimeout(60)
        received += everything(made)
    assert time.monotonic() - started > SECONDS - 0.5
    check_raw(received, 408, "request_timeout")


def test_a_slow_body_that_nobody_wants(bounded: LiveServer) -> None:
    started = time.monotonic()
    with connection(
        bounded, b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    ) as made:
        assert made.recv(4096).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(OSError):
            while time.monotonic() < started + SECONDS + 20:
                made.sendall(b" ")
                time.sleep(0.2)
            pytest.fail("it may drip for ever")


def test_idle_connections_are_closed(bounded: LiveServer) -> None:
    started = time.monotonic()
    with connection(bounded, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") as made:
        assert everything(made).startswith(b"HTTP/1.1 200")
    assert SECONDS - 0.5 < time.monotonic() - started < SECONDS + 20


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: " + b"b" * 100_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    ],
    ids=["text", "long header", "bad chunk", "negative length", "two lengths", "TLS"],
)
def test_what_is_no_http(bounded: LiveServer, raw: bytes) -> None:
    with connection(bounded, raw) as made:
        check_raw(everything(made), 400, "bad_request")


def test_a_client_that_does_not_read_is_cut_off(bounded: LiveServer) -> None:
    """It asks for many megabytes, and takes none."""
    ask = b"GET /docs-files/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20
    process = psutil.Process(bounded.process.pid)
    started = time.monotonic()
    with connection(bounded, ask) as made:
        own = made.getsockname()[1]

        def is_open() -> bool:
            found = process.net_connections("tcp")
            return any(getattr(each.raddr, "port", None) == own for each in found)

        eventually(is_open)  # it is accepted late
        eventually(lambda: not is_open())
    assert time.monotonic() - started > SECONDS - 0.5
