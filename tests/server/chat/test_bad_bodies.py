"""Bodies that are not JSON or too large: a 4xx for each, and nobody else notices."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.wire import AUTHORIZED, check_error

pytestmark = pytest.mark.usefixtures("undisturbed")

SOON = 20  # seconds for a refusal, on any machine


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"hello", 400, "invalid_json"),
        (b'{"messages": NaN}', 400, "invalid_json"),
        (b'\xff\xfe{"messages"', 400, "invalid_json"),
        (b'{"messages":[{"role":"user","content":"\\ud800"}]}', 400, "invalid_json"),
        (b"[" * 70_000, 400, "invalid_json"),
        (b'{"a":' * 70_000, 400, "invalid_json"),
        (b"x" * 60_000_000, 413, "request_too_large"),
    ],
    ids=["empty", "cut", "text", "nan", "utf16", "surrogate", "deep list", "deep object", "60 MB"],
)
def test_bodies_that_are_not_json(
    server: LiveServer, content: bytes, status: int, code: str
) -> None:
    url = f"{server.url}/chat/completions"
    response = httpx2.post(url, content=content, headers=AUTHORIZED, timeout=SOON)
    check_error(response, status, code, [])


def test_a_large_body_without_a_declared_length(server: LiveServer) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(60):
            yield b"x" * 1_000_000

    response = httpx2.post(f"{server.url}/chat/completions", content=parts(), headers=AUTHORIZED)
    check_error(response, 413, "request_too_large", [])


@pytest.mark.parametrize(
    ("key", "size", "status"), [(API_KEY, 60_000_000, 413), ("wrong", 20_000_000, 401)]
)
def test_clients_that_send_before_they_listen_hear_the_refusal(
    server: LiveServer, key: str, size: int, status: int
) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    headers = {"api-key": key, "Content-Type": "application/json"}
    connection.request("POST", "/chat/completions", b"x" * size, headers)
    response = connection.getresponse()
    assert response.status == status
    assert json.load(response)["status"] == status
    connection.close()


def test_a_large_body_that_asks_first_is_not_sent(server: LiveServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            f"POST /chat/completions HTTP/1.1\r\nHost: {host}\r\napi-key: {API_KEY}\r\n"
            "Content-Length: 60000000\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
