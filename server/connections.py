"""What a connection may cost before and after its request: uvicorn's protocol with time limits.

Slow heads and bodies get a 408, clients that do not read are cut off, and connections beyond the limit
get a 503. Knows nothing of routes.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from server.errors import RETRY_AFTER, ApiError, error_response, too_slow
from server.heads import Heads
from server.settings import Settings

LINGER = 1.0  # seconds that a refused client gets to read why


def bounded_protocol(settings: Settings) -> type[BoundedProtocol]:
    """The protocol with the limits of ``settings``."""
    return type("Protocol", (BoundedProtocol,), {"settings": settings})


class BoundedProtocol(H11Protocol):
    """One connection.

    Attributes:
        settings: its limits.
    """

    settings: ClassVar[Settings]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = Heads()
        self._refused = False
        self._awaited: str | None = None  # the part of a request that is to come
        self._arrival: asyncio.TimerHandle | None = None
        self._departure: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse it if there are too many."""
        super().connection_made(transport)
        limit = self.settings.max_connections
        if len(self.connections) > 2 * limit:
            transport.abort()
        elif len(self.connections) > limit:
            self._refuse(
                ApiError(
                    503,
                    "overloaded",
                    f"there are {limit} connections, the limit here; try again in a moment",
                    headers=RETRY_AFTER,
                )
            )
        else:
            self._await("head")

    def data_received(self, data: bytes) -> None:
        """Take what came; what is still to come of the request must do so in time."""
        if self._refused:
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await("head" if self.timeout_keep_alive_task is None else None)
        else:
            self._await("body" if self.conn.their_state is h11.SEND_BODY else None)

    def pause_writing(self) -> None:
        """The client reads too slowly, or not at all."""
        super().pause_writing()
        self._let_go_by(self.settings.write_timeout)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        if self._departure is not None and not self.transport.is_closing():
            self._departure.cancel()
            self._departure = None

    def on_response_complete(self) -> None:
        """A closed transport waits for the client to read the rest: not for ever."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._let_go_by(self.settings.write_timeout)

    def timeout_keep_alive_handler(self) -> None:
        """An idle connection is closed, read or not."""
        super().timeout_keep_alive_handler()
        self._let_go_by(self.settings.write_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        for timer in (self._arrival, self._departure):
            if timer is not None:
                timer.cancel()
        self._arrival = self._departure = None
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP: uvicorn's own answer is text, and fails after the first byte."""
        reason = f"{msg.rstrip('.')}; send HTTP/1.1, with no more than 16 kB of headers"
        self._refuse(ApiError(400, "bad_request", reason))

    def _await(self, part: str | None) -> None:
        """Start the time that ``part`` of a request may take, unless it runs."""
        if part == self._awaited:
            return
        self._awaited = part
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None
        if part is not None:
            settings = self.settings
            seconds = settings.header_timeout if part == "head" else settings.body_timeout
            self._arrival = self.loop.call_later(seconds, self._too_slow, part, seconds)

    def _too_slow(self, part: str, seconds: float) -> None:
        self._refuse(too_slow(part, seconds))

    def _let_go_by(self, seconds: float) -> None:
        if self._departure is None and self.transport.get_write_buffer_size():
            self._departure = self.loop.call_later(seconds, self.transport.abort)

    def _refuse(self, error: ApiError) -> None:
        """Answer, if no answer has begun, and take nothing more."""
        self._refused = True
        self._await(None)
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun
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
        if cycle is not None:  # its app hears that the client has gone
            cycle.disconnected = True
            cycle.message_event.set()
        self.flow.resume_reading()  # unread data would make the system cut the answer off
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.abort)
