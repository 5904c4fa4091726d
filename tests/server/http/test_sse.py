"""What a stream does when the engine fails in the middle of it, which no client can provoke."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from model import ModelError
from server.http.sse import ChunkStream
from server.schemas.responses import ChatCompletionChunk, ChunkChoice, Delta

CHUNK = ChatCompletionChunk(
    id="x", created=1, model="m", choices=[ChunkChoice(index=0, delta=Delta(content="Hello"))]
)


class Closable:
    """Stands in for the generation behind the stream."""

    closed = False

    def close(self) -> None:
        self.closed = True


async def failing() -> AsyncIterator[bytes]:
    yield CHUNK.model_dump_json().encode()
    raise ModelError("the engine failed at this answer")


def read_until_cut(url: str) -> bytes:
    """The body as far as it comes; fails if it ends in order."""
    received = b""
    try:
        with httpx2.stream("GET", url) as response:
            for part in response.iter_bytes():
                received += part
    except httpx2.RemoteProtocolError:
        return received
    pytest.fail("the stream ended as if nothing had happened")


@pytest.fixture
def failing_server() -> Iterator[tuple[str, Closable]]:
    """A real server whose streams fail after one chunk."""
    generation = Closable()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = ChunkStream(failing(), generation.close)
        await stream(scope, receive, send)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", generation
        server.should_exit = True
        thread.join()


def test_an_error_after_the_first_byte(failing_server: tuple[str, Closable]) -> None:
    """An error chunk, then the connection is cut: no ``[DONE]``, no orderly end."""
    url, generation = failing_server
    events = read_until_cut(url).decode().split("\n\n")
    assert [event[:6] for event in events] == ["data: ", "data: ", ""]
    assert json.loads(events[0][6:])["choices"][0]["delta"]["content"] == "Hello"
    error = json.loads(events[1][6:])["error"]
    assert (error["code"], error["status"]) == ("internal_error", 500)
    assert error["message"] == "the engine failed at this answer"
    assert generation.closed
