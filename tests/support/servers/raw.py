"""Bytes on connections, for what no client library sends."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

from tests.support.servers.live_server import LiveServer


@contextlib.contextmanager
def connection(server: LiveServer, *parts: bytes) -> Iterator[socket.socket]:
    """A connection on which ``parts`` have been sent."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as made:
        for part in parts:
            made.sendall(part)
        yield made


def up_to(made: socket.socket, end: bytes) -> bytes:
    """What comes until it ends so."""
    received = b""
    while not received.endswith(end):
        part = made.recv(65536)
        assert part, received
        received += part
    return received


def everything(made: socket.socket) -> bytes:
    """What comes until the server closes; the time that takes is bounded by the socket's."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := made.recv(65536):
            received += part
    return received


def check_raw(raw: bytes, status: int, code: str) -> dict[str, Any]:
    """The error that came, and the connection's end."""
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), raw
    parsed: dict[str, Any] = json.loads(body)
    assert (parsed["code"], parsed["error"]["status"]) == (code, status)
    assert f"x-ms-error-code: {code}".encode() in head.lower()
    return parsed
