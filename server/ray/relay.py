"""Relays responses from one process to another as batches of ASGI messages.

Independent of the transport.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError
from server.http.sse import StreamBrokenError, error_event

logger = logging.getLogger(__name__)

MessageBatch = list[Message]
# Keys of a request's scope that can be serialized.
PASSED_ON = {
    "type",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
}


def portable(scope: Scope) -> Scope:
    """The part of a request's scope that can be sent to another process."""
    return {name: value for name, value in scope.items() if name in PASSED_ON}


async def message_batches(
    app: ASGIApp, scope: Scope, body: bytes
) -> AsyncGenerator[MessageBatch, None]:
    """Run the application and yield its messages, batching those that are ready together.

    Closing or cancelling the generator cancels the application.

    Raises:
        StreamBrokenError: the application failed; the log has the cause.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    unread = [body]

    async def receive() -> Message:
        if not unread:
            await asyncio.Event().wait()  # when the client disconnects, this is cancelled
        return {"type": "http.request", "body": unread.pop(), "more_body": False}

    running = asyncio.ensure_future(app(scope, receive, messages.put))
    running.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        ended = False
        while not ended:
            ready = [await messages.get()]
            while not messages.empty():
                ready.append(messages.get_nowait())
            batch = [message for message in ready if message is not None]
            ended = None in ready
            if batch:
                yield batch
        await running
    except StreamBrokenError:
        raise
    except Exception as error:  # its message may quote the request, so do not pass it on
        logger.exception("request failed")
        raise StreamBrokenError(type(error).__name__) from None
    finally:
        running.cancel()


class RelayedResponse(Response):
    """A response made of message batches.

    Args:
        first: the first batch.
        others: all further batches. If they raise an ApiError in a stream, it is sent as a last event.
    """

    def __init__(self, first: MessageBatch, others: AsyncGenerator[MessageBatch, None]) -> None:
        super().__init__()
        self._content_type = Headers(raw=first[0]["headers"]).get("content-type", "")
        self._first = first
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; raises StreamBrokenError if it is incomplete."""
        try:
            async with aclosing(self._others):
                for message in self._first:
                    await send(message)
                async for batch in self._others:
                    for message in batch:
                        await send(message)
        except ApiError as error:
            if self._content_type.startswith("text/event-stream"):
                event = error_event(error)
                await send({"type": "http.response.body", "body": event, "more_body": True})
            raise StreamBrokenError from None


class AppResponse(Response):
    """An application's response with one header removed.

    Args:
        app: the application.
        without: the header to remove.
    """

    def __init__(self, app: ASGIApp, without: str) -> None:
        super().__init__()
        self._app = app
        self._without = without

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""

        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[self._without]
            await send(message)

        await self._app(scope, receive, send_without)
