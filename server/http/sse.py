"""Server-sent events. Chunks of chat completions are in the strict form that azure-ai-inference requires.

Every line of theirs is empty or starts with ``data:`` and ends in a bare line feed. No comments, pings or
event names are sent.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.types import Receive, Scope, Send

import model
from server.errors import ApiError, error_body, from_model_error

logger = logging.getLogger(__name__)

# At shutdown, let streams finish within uvicorn's time limit instead of aborting them.
AppStatus.enable_automatic_graceful_drain = False


class StreamBrokenError(Exception):
    """Aborts the connection, so that no client takes a failed stream for a complete one.

    The message contains nothing of the request, because uvicorn or Ray may log it.
    """

    def __init__(self, message: str = "stream aborted") -> None:
        super().__init__(message)


def error_event(error: ApiError) -> bytes:
    """An event with an error that occurred after the response had started."""
    return b"data: " + json.dumps(error_body(error)).encode() + b"\n\n"


def is_not_a_broken_stream(record: logging.LogRecord) -> bool:
    """A filter for uvicorn's log that drops aborted streams, which are logged separately."""
    return not (record.exc_info and isinstance(record.exc_info[1], StreamBrokenError))


class EventStream(EventSourceResponse):
    """A stream of events.

    Args:
        events: the events as they are sent, or pieces of them.
        end: called when everything is sent or the client has disconnected, even before the first event.
        headers: of the response.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        end: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(events, headers=headers, sep="\n", ping=0)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


class ChunkStream(EventStream):
    """A stream of chunks, ended by ``[DONE]``; ``chunks`` are those of one completion, as JSON."""

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        end: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(_events(chunks), end, headers)


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield b"data: " + chunk + b"\n\n"
    except model.ModelError as error:
        failed = from_model_error(error)
        yield error_event(failed)  # for clients that read it; then the connection is aborted
        logger.warning("stream aborted: %s", failed.code)  # the message may quote a grammar
        raise StreamBrokenError from None
    yield b"data: [DONE]\n\n"
