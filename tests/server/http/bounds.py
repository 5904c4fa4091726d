"""A server with low limits: what they are, and what fills them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil

from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.raw import connection
from tests.support.waiting import eventually

SECONDS = 2  # every time limit of connections
CONNECTIONS = 20
HEAD = (
    f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\napi-key: {API_KEY}\r\n"
    "Content-Type: application/json\r\n"
).encode()


def until_none_is_open(server: LiveServer) -> None:
    process = psutil.Process(server.process.pid)
    eventually(lambda: all(c.status != "ESTABLISHED" for c in process.net_connections("tcp")))


@contextlib.contextmanager
def taken(server: LiveServer) -> Iterator[None]:
    """All connections are, by clients that say nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connection(server))
        yield
