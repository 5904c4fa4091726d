"""Limits the size of request heads and normalizes request targets to paths.

h11 limits only incomplete heads, and it passes on absolute targets (``GET http://host/info``), which
clients send to proxies.
"""

from __future__ import annotations

import re

import h11

LARGEST_HEAD = 16 * 1024  # bytes, including the final empty line
END = re.compile(rb"\n\r?\n")
ABSOLUTE = re.compile(rb"https?://([^/?#]+)([^#]*)", re.IGNORECASE)


class BoundedH11Connection(h11.Connection):
    """The server's side of an HTTP/1.1 connection.

    Attributes:
        sends_chunks: whether the current response uses chunked encoding.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, LARGEST_HEAD)
        self.sends_chunks = False

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event; raises h11.RemoteProtocolError if a head is too large."""
        if self.their_state is h11.IDLE:
            received, _ = self.trailing_data
            if len(received) > LARGEST_HEAD and not END.search(received, 0, LARGEST_HEAD):
                raise h11.RemoteProtocolError(
                    "the request's headers are too large", error_status_hint=431
                )
        event = super().next_event()
        return _for_a_path(event) if isinstance(event, h11.Request) else event

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """Serialize an event, and note whether the response is chunked."""
        if isinstance(event, h11.Response):
            known = any(name == b"content-length" for name, _ in event.headers)
            self.sends_chunks = not known and (self.their_http_version or b"") >= b"1.1"
        return super().send_with_data_passthrough(event)


def _for_a_path(request: h11.Request) -> h11.Request:
    """Convert an absolute target to a path; its authority replaces the Host header."""
    found = ABSOLUTE.fullmatch(request.target)
    if found is None:
        return request
    authority, path = found.groups()
    others = [(name, value) for name, value in request.headers if name != b"host"]
    return h11.Request(
        method=request.method,
        headers=[(b"host", authority), *others],
        target=path if path.startswith(b"/") else b"/" + path,
        http_version=request.http_version,
    )
