"""Answers of the application that are made in one process and sent by another, in batches of messages.

Knows nothing of what carries the batches.
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

Batch = list[Message]
# Of a request's scope; the rest does not travel between processes.
PASSED_ON = {
    *("type", "http_version", "method", "scheme", "path", "raw_path", "query_string"),
    *("root_path", "headers", "client", "server"),
}


def portable(scope: Scope) -> Scope:
    """The part of a request's scope that can travel."""
    return {name: value for name, value in scope.items() if name in PASSED_ON}


async def answer(app: ASGIApp, scope: Scope, body: bytes) -> AsyncGenerator[Batch, None]:
    """The application's messages for a request, those at once that are there at once.

    The application is cancelled when the generator is closed or cancelled.

    Raises:
        StreamBrokenError: the application failed; its log says how.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    unread = [body]

    async def receive() -> Message:
        if not unread:
            await asyncio.Event().wait()  # a client that goes away cancels all of this
        return {"type": "http.request", "body": unread.pop(), "more_body": False}

    answering = asyncio.ensure_future(app(scope, receive, messages.put))
    answering.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        message = await messages.get()
        while message is not None:
            batch = [message]
            while not messages.empty() and (message := messages.get_nowait()) is not None:
                batch.append(message)
            yield batch
            message = message and await messages.get()
        await answering
    except StreamBrokenError:
        raise
    except Exception as error:  # its words may be of a request, and are for our log alone
        logger.exception("a request failed")
        raise StreamBrokenError(type(error).__name__) from None
    finally:
        answering.cancel()


class Relayed(Response):
    """The response of which the batches are.

    Args:
        first: batch.
        others: as they come; an ApiError that they raise is told in streams, and breaks them off.
    """

    def __init__(self, first: Batch, others: AsyncGenerator[Batch, None]) -> None:
        super().__init__()
        self._content_type = Headers(raw=first[0]["headers"]).get("content-type", "")
        self._first = first
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; raises StreamBrokenError where its end does not come."""
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


class Passed(Response):
    """An application's answer as a response.

    Args:
        app: the application.
        without: a header that whoever sends this adds.
    """

    def __init__(self, app: ASGIApp, without: str) -> None:
        super().__init__()
        self._app = app
        self._without = without

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""

        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[self._without]
            await send(message)

        await self._app(scope, receive, send_without)
