"""Chunks as server-sent events, in the strict form that azure-ai-inference's parser needs.

Every line is ``data: ...`` or empty, ends in a bare line feed, and nothing else is ever sent: no
comments, no pings, no event names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.types import Receive, Scope, Send

import model
from server.errors import ApiError, error_body, from_model_error

logger = logging.getLogger(__name__)

# At shutdown running streams finish, within uvicorn's own time limit, instead of being cut off.
AppStatus.enable_automatic_graceful_drain = False


class StreamBrokenError(Exception):
    """Makes the server close the connection without a proper end, so that no client is fooled.

    Its text has no words of a request: whoever carries the answer may log it.
    """

    def __init__(self, message: str = "stream aborted") -> None:
        super().__init__(message)


def error_event(error: ApiError) -> bytes:
    """The event that tells an error where it is too late for a status."""
    return b"data: " + json.dumps(error_body(error)).encode() + b"\n\n"


def is_not_a_broken_stream(record: logging.LogRecord) -> bool:
    """A filter for the web server's log: a stream that is broken off on purpose has a line of its own."""
    return not (record.exc_info and isinstance(record.exc_info[1], StreamBrokenError))


class ChunkStream(EventSourceResponse):
    """A stream of chunks, ended by ``[DONE]``.

    Args:
        chunks: of one completion, as JSON.
        end: called when all is sent or the client has gone away, also before the first chunk.
    """

    def __init__(self, chunks: AsyncIterator[bytes], end: Callable[[], None]) -> None:
        super().__init__(_events(chunks), sep="\n", ping=0)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield b"data: " + chunk + b"\n\n"
    except model.ModelError as error:
        failed = from_model_error(error)
        yield error_event(failed)  # for those who read it, then an abrupt end
        logger.warning("stream aborted: %s", failed.code)  # its words may quote a grammar
        raise StreamBrokenError from None
    yield b"data: [DONE]\n\n"
