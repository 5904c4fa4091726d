"""Heads of requests: how large they may be, however they arrive, and targets as proxies get them."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.raw import check_raw, connection, everything, up_to

LARGEST = 16 * 1024
START = f"POST /tokenize HTTP/1.1\r\nHost: x\r\napi-key: {API_KEY}\r\n".encode()
START += b"Content-Type: application/json\r\n"
SMALL = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def head(size: int, length: int = 0) -> bytes:
    """One of that many bytes, for a body of ``length``."""
    rest = f"Connection: close\r\nContent-Length: {length}\r\n\r\n".encode()
    filler = b"a: " + b"b" * (size - len(START) - len(rest) - 5) + b"\r\n"
    return START + filler + rest


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("first", [b"", SMALL], ids=["first", "second"])
@pytest.mark.parametrize("size", [LARGEST + 1, 100_000])
@pytest.mark.parametrize("piece", [1 << 20, 1000], ids=["at once", "in pieces"])
def test_heads_that_are_too_large(server: LiveServer, size: int, piece: int, first: bytes) -> None:
    with connection(server) as made:
        if first:
            made.sendall(first)
            up_to(made, b'{"status":"ready"}')
        try:
            for part in pieces(head(size), piece):
                made.sendall(part)
        except ConnectionError:
            pass  # it is told before it has sent all
        error = check_raw(everything(made), 400, "bad_request")
    assert "at most 16 kB of headers" in error["message"]


def test_a_large_head_behind_another_request(server: LiveServer) -> None:
    with connection(server, SMALL + head(LARGEST + 1)) as made:
        received = everything(made)
    assert b'"ready"' in received
    check_raw(received[received.rindex(b"HTTP/1.1 400 ") :], 400, "bad_request")


@pytest.mark.parametrize("piece", [1 << 20, 1000], ids=["at once", "in pieces"])
def test_the_largest_head_and_a_body_behind_it(server: LiveServer, piece: int) -> None:
    body = b'{"prompt": "' + b"x " * 300 + b'"}'
    with connection(server, *pieces(head(LARGEST, len(body)) + body, piece)) as made:
        received = everything(made)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b'"count":' in received


@pytest.mark.parametrize("path", ["/info?api-version=1", "//info/", "/health"])
def test_absolute_targets(server: LiveServer, path: str) -> None:
    """As clients send them that take the server for a proxy."""
    with httpx2.Client(proxy=server.url, trust_env=False) as client:
        got = client.get(f"http://elsewhere.example{path}", headers={"api-key": API_KEY})
    own = httpx2.get(server.url + path, headers={"api-key": API_KEY})
    assert (got.status_code, got.json()) == (200, own.json())


@pytest.mark.parametrize("target", [b"HTTP://x", b"http://x?a=b", b"http://x/"])
def test_absolute_targets_of_the_root(server: LiveServer, target: bytes) -> None:
    ask = LAST.replace(b"/health", target, 1)
    with connection(server, ask) as made:
        assert b"text/html" in everything(made)
