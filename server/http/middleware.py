"""What happens around every request, whatever its route: paths, HEAD, bugs, ids, polite refusals."""

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
    """A path with single slashes and none at its end; the root stays ``/``."""
    return "/" + "/".join(filter(None, path.split("/")))


class PlainPaths:
    """Routes ``//chat/completions`` and ``/info/`` as if their slashes were single.

    Clients join an endpoint that ends in a slash and a path that begins with one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its path in plain form."""
        if scope["type"] == "http":
            scope = {**scope, "path": plain_path(scope["path"])}
        await self._app(scope, receive, send)


class HeadAsGet:
    """Routes a HEAD as the GET it asks about; the web server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on as a GET."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class CatchBugs:
    """Turns what nothing else catches into a 500, and lets it go on to the log.

    Starlette would respond outside of all other middleware: without request ids, and unreadable to
    pages of other origins.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
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
    """Echoes the caller's request ids, and names the request where there is none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, adding the ids to the start of its response."""
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
    """Tells a caller with limits how much of them is left."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, adding the headers to the start of its response if it was let in."""
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
    """Takes the rest of a refused request's body, to a point, before the refusal is sent.

    Many clients look for an answer only when they have sent everything; to them an early 401 or
    413 is a broken connection. Those that ask first (``Expect: 100-continue``) are told at once.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; hold an error back until its body has been read."""
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
                # A client that dawdles is told before it has finished.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(read_rest(), READ_FOR_AT_MOST)
            await send(message)

        await self._app(scope, receive_and_note, read_and_send)
