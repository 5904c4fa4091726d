"""Middleware for all routes: paths, HEAD, bugs, request ids, rate limit headers, early refusals."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import error_response, internal_error
from server.http.exchange import exchange_of

REQUEST_IDS = ("x-ms-client-request-id", "x-request-id")
LONGEST_ID = 128  # characters; a longer one is not echoed
READ_AT_MOST = 256_000_000  # bytes of a refused body
READ_FOR_AT_MOST = 5.0  # seconds


def plain_path(path: str) -> str:
    """Normalize a path to single slashes and no trailing slash; the root stays ``/``."""
    return "/" + "/".join(filter(None, path.split("/")))


class PlainPaths:
    """Normalizes paths such as ``//chat/completions`` and ``/info/``.

    Clients produce them by joining an endpoint with a trailing slash and a path with a leading one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request under its normalized path."""
        if scope["type"] == "http":
            scope = {**scope, "path": plain_path(scope["path"])}
        await self._app(scope, receive, send)


class HeadAsGet:
    """Routes HEAD requests as GET; uvicorn omits the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class CatchBugs:
    """Turns uncaught exceptions into a 500 and re-raises them for the log.

    Starlette's own handler runs outside all other middleware, so its response would lack request ids and
    CORS headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            if scope["type"] == "http" and not started:
                reason = "internal server error; see the server's log"
                response = error_response(internal_error(reason))
                await response(scope, receive, send)
            raise


class RequestIds:
    """Echoes the client's request ids, or assigns a random one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request and add the ids to its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope)
        ids = {
            name: sent[name] for name in REQUEST_IDS if 0 < len(sent.get(name, "")) <= LONGEST_ID
        }
        ids.setdefault("x-request-id", uuid.uuid4().hex)
        exchange_of(scope).request_id = ids["x-request-id"]

        async def send_with_ids(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(ids)
            await send(message)

        await self._app(scope, receive, send_with_ids)


class RateLimits:
    """Adds rate limit headers to responses."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request and add the headers to its response if it was admitted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(scope)

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start" and exchange.admission is not None:
                MutableHeaders(scope=message).update(exchange.admission.headers())
            await send(message)

        await self._app(scope, receive, send_with_limits)


class ReadBeforeRefusing:
    """Reads the rest of a refused request's body, up to a limit, before sending the error.

    Many clients read the response only after sending the whole body, so an early 401 or 413 looks to
    them like a broken connection. Clients that send ``Expect: 100-continue`` get the error at once.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; delay an error until the body has been read."""
        if scope["type"] != "http" or Headers(scope=scope).get("expect"):
            await self._app(scope, receive, send)
            return
        more = True

        async def receive_and_note() -> Message:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def read_rest() -> None:
            size = 0
            while more and size < READ_AT_MOST:
                size += len((await receive_and_note()).get("body", b""))

        async def read_and_send(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                # Slow clients get the error before they have finished.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(read_rest(), READ_FOR_AT_MOST)
            await send(message)

        await self._app(scope, receive_and_note, read_and_send)
