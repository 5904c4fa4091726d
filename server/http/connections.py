"""uvicorn's HTTP protocol with time limits and a connection limit.

Requests that arrive too slowly get a 408, and clients that do not read are disconnected. Connections
beyond the limit may only probe health; other requests on them get a 503.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, ClassVar

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from server.errors import ApiError, error_response, too_slow, unavailable
from server.http.connection_limit import RESERVE, ConnectionLimit
from server.http.middleware import plain_path
from server.http.request_heads import BoundedH11Connection
from server.settings import Settings

LINGER = 1.0  # seconds for a refused client to read the error
# A half-closed client may be gone: seconds between checks, and from the first knock (see _knock) to the
# second; the interval grows tenfold each time.
LOOK_EVERY = 0.1
KNOCK_AFTER = 1.0
RESERVE_TIMEOUT = 5.0  # seconds for a request to arrive on a connection in the reserve


def bounded_protocol(settings: Settings) -> type[BoundedProtocol]:
    """Create the protocol class for a server with these settings."""
    limit: ConnectionLimit[BoundedProtocol] = ConnectionLimit(settings.max_connections)
    return type("Protocol", (BoundedProtocol,), {"settings": settings, "connection_limit": limit})


class BoundedProtocol(H11Protocol):
    """One connection.

    Attributes:
        settings: the limits.
        connection_limit: shared by all connections of a server.
    """

    settings: ClassVar[Settings]
    connection_limit: ClassVar[ConnectionLimit[BoundedProtocol]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn: BoundedH11Connection = BoundedH11Connection()
        self._in_reserve = False
        self._refused = False
        self._awaited: str | None = None  # the part of a request that is due: "head" or "body"
        self._arrival: asyncio.TimerHandle | None = None
        self._departure: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        self._knocked = 0.0
        self._knock_after = KNOCK_AFTER

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the connection, or at the limit, admit it to the reserve."""
        super().connection_made(transport)
        if not self.connection_limit.admit(self):
            self._in_reserve = True
            self.app = self._answer_probe
            evicted = self.connection_limit.admit_to_reserve(self)
            if evicted is not None:
                evicted.refuse_one_too_many()
        self._await("head")

    def refuse_one_too_many(self) -> None:
        """Respond that there are too many connections, and close this one."""
        limit = self.settings.max_connections
        reason = (
            f"too many connections; the limit is {limit} (--max-connections); try again in a moment"
        )
        self._refuse(unavailable(reason))

    def data_received(self, data: bytes) -> None:
        """Process data, and set the time limit for the rest of the request."""
        if self._refused:
            return
        super().data_received(data)
        request: RequestResponseCycle | None = self.cycle
        if self._in_reserve and request is not None:
            self._take_probe()
        if self._refused:
            return
        if self.conn.their_state is h11.IDLE:
            self._await("head" if self.timeout_keep_alive_task is None else None)
        else:
            self._await("body" if self.conn.their_state is h11.SEND_BODY else None)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep serving a client that has closed only its sending side.

        To tell it from one that is gone, send it something: the peer's system resets the connection if
        the socket no longer exists.
        """
        request: RequestResponseCycle | None = self.cycle
        if self._refused or request is None or request.response_complete:
            return False
        if self.scheme == "https" or self.conn.their_state not in (h11.DONE, h11.MUST_CLOSE):
            return False  # asyncio's TLS closes; or the request is incomplete
        if self.scope["http_version"] == "1.0" and self.scope["method"] not in ("GET", "HEAD"):
            return False  # HTTP/1.0 has no interim data to send, and an answer may take long
        if self._look is None:
            self._knock()
            self._look_for_reader()
        return True

    def pause_writing(self) -> None:
        """Disconnect a client that does not read within the write timeout."""
        super().pause_writing()
        self._abort_after(self.settings.write_timeout)

    def resume_writing(self) -> None:
        """Cancel the write timeout."""
        super().resume_writing()
        if self._departure is not None and not self.transport.is_closing():
            self._departure.cancel()
            self._departure = None

    def on_response_complete(self) -> None:
        """Bound the time for which a closing transport waits for the client to read."""
        super().on_response_complete()
        if self._look is not None and self.cycle.response_complete:
            self.transport.close()  # no more requests can follow from a half-closed client
        if self.transport.is_closing():
            self._abort_after(self.settings.write_timeout)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if the client does not read."""
        super().timeout_keep_alive_handler()
        self._abort_after(self.settings.write_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel timers and stop counting the connection."""
        for timer in (self._arrival, self._departure, self._look):
            if timer is not None:
                timer.cancel()
        self._arrival = self._departure = self._look = None
        self.connection_limit.release(self)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Respond to invalid HTTP. Overridden: uvicorn responds in plain text, and fails mid-response."""
        reason = f"{msg.rstrip('.')}; send HTTP/1.1 with at most 16 kB of headers"
        self._refuse(ApiError(400, "bad_request", reason))

    def _knock(self) -> None:
        """Send bytes that clients ignore, if possible in the current state."""
        self._knocked = self.loop.time()
        if self.scope["http_version"] == "1.0" or self.scope["method"] == "HEAD":
            return
        if self.conn.our_state is h11.SEND_RESPONSE:
            interim = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(interim))
        elif self.conn.our_state is h11.SEND_BODY and self.conn.sends_chunks:
            self.transport.write(b"0")  # the first digit of the next chunk's size

    def _look_for_reader(self) -> None:
        """Disconnect once the peer has reset the connection."""
        connected: socket.socket = self.transport.get_extra_info("socket")
        if connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        elif self.loop.time() > self._knocked + self._knock_after:
            self._knock_after *= 10
            self._knock()
        self._look = self.loop.call_later(LOOK_EVERY, self._look_for_reader)

    def _take_probe(self) -> None:
        """Keep a health probe in the reserve; refuse any other request."""
        if self.scope["method"] in ("GET", "HEAD") and _is_health_path(self.scope["path"]):
            self.connection_limit.keep(self)
        else:
            self.refuse_one_too_many()

    async def _answer_probe(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request in the reserve, then close the connection."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                closing = (b"connection", b"close")
                message = {**message, "headers": [*message["headers"], closing]}
            await send(message)

        if not self._refused:
            await self.config.loaded_app(scope, receive, send_and_close)

    def _await(self, part: str | None) -> None:
        """Start the time limit for ``part`` of a request, unless it is running."""
        if part == self._awaited:
            return
        self._awaited = part
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None
        if part is not None:
            settings = self.settings
            seconds = settings.header_timeout if part == "head" else settings.body_timeout
            if self._in_reserve:
                seconds = min(seconds, RESERVE_TIMEOUT)
            self._arrival = self.loop.call_later(seconds, self._too_slow, part, seconds)

    def _too_slow(self, part: str, seconds: float) -> None:
        if self._in_reserve:
            self.refuse_one_too_many()
        else:
            self._refuse(too_slow(part, seconds))

    def _abort_after(self, seconds: float) -> None:
        """Abort the connection after that time, unless the client has read everything."""
        if self._departure is None and self.transport.get_write_buffer_size():
            self._departure = self.loop.call_later(seconds, self.transport.abort)

    def _refuse(self, error: ApiError) -> None:
        """Send the error, unless a response has started, and close the connection."""
        if self._in_reserve:
            self.connection_limit.release(self)
            if len(self.connections) > 2 * self.settings.max_connections + RESERVE:
                self.transport.abort()  # too many refused connections linger
                return
        self._refused = True
        self._await(None)
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # a response has started
            self.transport.abort()
            return
        response = error_response(error)
        headers = [*response.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=error.status, headers=headers),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None:  # tell the app that the client has disconnected
            cycle.disconnected = True
            cycle.message_event.set()
        self.flow.resume_reading()  # unread data would make the system reset the connection
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.abort)


def _is_health_path(path: str) -> bool:
    return (plain_path(path) + "/").startswith("/health/")
