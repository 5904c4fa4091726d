"""Runs a prepared request and responds, streamed or whole, unless the client leaves first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response

from server.auth.limits import Admission
from server.errors import CLIENT_CLOSED
from server.http.exchange import Completion, exchange_of
from server.http.piecewise_json import PiecewiseJsonResponse
from server.http.sse import ChunkStream, EventStream

T = TypeVar("T")


class Finished(Protocol):
    """A whole answer."""

    def pieces(self) -> Iterable[bytes]:
        """Its JSON in pieces."""


class Running(Completion, Protocol):
    """An answer in progress."""

    def stream(self) -> AsyncIterator[bytes]:
        """Stream its events or chunks; raises a ModelError."""

    def complete(self) -> Coroutine[Any, Any, Finished]:
        """Collect all of it; raises a ModelError."""


Started = TypeVar("Started", bound=Running, covariant=True)


class Prepared(Protocol[Started]):
    """A request that is ready for the engine."""

    def start(self, admit: Callable[[int, int], None]) -> Coroutine[Any, Any, Started]:
        """Start it; see ``AsyncEngine.generate`` for ``admit`` and errors."""


async def respond(
    request: Request,
    admission: Admission,
    prepared: Prepared[Running],
    stream: type[EventStream] | type[ChunkStream] | None,
    headers: Mapping[str, str],
) -> Response:
    """Run a request.

    Args:
        request: the client's request.
        admission: settled with the tokens that were used.
        prepared: what to run.
        stream: the kind of stream; None for a whole answer.
        headers: of the response.

    Raises:
        ApiError: the caller must wait.
        model.ModelError: the engine refuses the request, or fails before the response starts.
    """
    running = await _unless_disconnected(
        request, prepared.start(admission.reserve), lambda started: started.generation.close()
    )
    if running is None:
        return Response(status_code=CLIENT_CLOSED)
    generation = running.generation
    exchange_of(request.scope).completion = running  # for the access log

    def settle() -> None:
        admission.settle(generation.prompt_tokens + generation.completion_tokens)

    def end() -> None:
        generation.close()
        settle()

    if stream is not None:
        return stream(running.stream(), end, headers)
    try:
        finished = await _unless_disconnected(request, running.complete())
        if finished is not None:
            settle()  # before the response's headers report the rate limits
            return PiecewiseJsonResponse(finished.pieces(), generation.close, headers)
    except BaseException:
        end()
        raise
    end()
    return Response(status_code=CLIENT_CLOSED)


async def _unless_disconnected(
    request: Request, work: Coroutine[Any, Any, T], discard: Callable[[T], None] = lambda _: None
) -> T | None:
    """Await ``work``, but cancel it and return None if the client disconnects.

    Args:
        request: the client's request.
        work: the coroutine to run.
        discard: called with the result if it arrives too late.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(disconnected())
    is_returned = False
    try:
        await asyncio.wait({task, watching}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            is_returned = True
            return task.result()
    finally:
        watching.cancel()
        if not is_returned:
            task.cancel()
            task.add_done_callback(partial(_discard, discard))
            await asyncio.wait({task})  # what it holds counts as in flight until then
    return None


def _discard(discard: Callable[[T], None], work: asyncio.Future[T]) -> None:
    if not work.cancelled() and work.exception() is None:
        discard(work.result())
