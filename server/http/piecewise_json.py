"""A JSON response that is sent in pieces, so that large ones do not block the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE = 1 << 16  # bytes


class PiecewiseJsonResponse(Response):
    """A JSON response.

    Args:
        pieces: the body in small pieces, which are sent several at a time.
        end: called when everything is sent or the client has disconnected.
        headers: of the response, besides its length and type.
    """

    media_type = "application/json"

    def __init__(
        self,
        pieces: Iterable[bytes],
        end: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._pieces = list(pieces)
        self._end = end
        length = {"content-length": str(sum(map(len, self._pieces)))}
        super().__init__(headers={**(headers or {}), **length})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            together = bytearray()
            for piece in self._pieces:
                together += piece
                if len(together) >= PIECE:
                    await send(_body(bytes(together), more=True))
                    together.clear()
                    await asyncio.sleep(0)  # let others run, as send() may never suspend
            await send(_body(bytes(together), more=False))
        finally:
            self._end()


def _body(data: bytes, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}
