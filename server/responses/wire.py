"""Serializes responses and events, with log probabilities that are serialized already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from server.schemas.responses_events import Event
from server.schemas.responses_object import ResponseObject

EMPTY = b'"logprobs":[]'  # quotes in a string are escaped, so no text looks like this
PIECE = 1 << 16  # bytes

Pieces = list[bytes]


def response_pieces(response: ResponseObject, logprobs: Sequence[Pieces]) -> Pieces:
    """The response's JSON in pieces.

    Args:
        response: the response, without log probabilities.
        logprobs: those of each message in its output, as JSON pieces of a list without its brackets.
    """
    return _spliced(response.model_dump_json().encode(), logprobs)


def event_pieces(event: Event, logprobs: Sequence[Pieces]) -> Iterator[bytes]:
    """The server-sent event in pieces, most of them not longer than ``PIECE``; see ``response_pieces``."""
    together = bytearray(f"event: {event.type}\ndata: ".encode())
    for piece in (*_spliced(event.model_dump_json().encode(), logprobs), b"\n\n"):
        together += piece
        if len(together) >= PIECE:
            yield bytes(together)
            together.clear()
    yield bytes(together)


def _spliced(text: bytes, logprobs: Sequence[Pieces]) -> Pieces:
    """Fill the first empty lists of log probabilities; a client's own fields follow behind them."""
    begin, *rest = text.split(EMPTY, len(logprobs))
    pieces = [begin]
    for own, after in zip(logprobs, rest, strict=True):
        pieces += [EMPTY[:-1], *own, b"]" + after] if own else [EMPTY + after]
    return pieces
