"""From the bytes of a request to what they ask, if that is not more than can be served.

The parser lets no other thread run, so what it is given is bounded first: by what takes it long. The
data of images does not, and may be as large as a body.
"""

from __future__ import annotations

import asyncio
import codecs
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic_core import from_json

from server.errors import ApiError

READ_ON_THREAD_ABOVE = (
    16_000  # bytes; smaller bodies are parsed and validated in a few milliseconds
)
# Both are more than the longest text that fits into the context window has; the worst that is within
# them takes the parser some 30 ms.
MOST_MARKS = 80_000
MOST_TEXT = 3_000_000  # bytes
MARKS = b",[{"  # before each value stands one, or the colon of its key
BASE64 = (string.ascii_letters + string.digits + "+/=").encode()
ESCAPE = 6  # bytes of the longest, of which only the first is not among the characters of base64
PIECE = 1 << 20  # bytes looked at while no other thread runs
BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

T = TypeVar("T")


@dataclass(frozen=True)
class Json:
    """A JSON value, and how many bytes of a request it was."""

    value: object
    size: int

    async def read(self, parse: Callable[[object], T]) -> T:
        """What ``parse`` makes of the value; it runs on a thread where that may take a while."""
        if self.size > READ_ON_THREAD_ABOVE:
            return await asyncio.to_thread(parse, self.value)
        return parse(self.value)


async def decode(body: bytes | bytearray, what: str = "the body") -> Json:
    """The JSON value in ``body``, which errors call ``what``; raises a 400 or 422 ApiError."""
    if len(body) > READ_ON_THREAD_ABOVE:
        return await asyncio.to_thread(_decode, body, what)
    return _decode(body, what)


def _decode(body: bytes | bytearray, what: str) -> Json:
    if not body:
        raise ApiError(400, "invalid_json", f"{what} is empty; send a JSON object with messages")
    check_size(body, what)
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings="none")  # few are alike
    except ValueError as error:
        reason = f"{what} is not valid JSON: {error}"
        if body.startswith(BYTE_ORDER_MARKS):
            reason = f"{what} begins with a byte order mark; send it as UTF-8 without one"
        raise ApiError(400, "invalid_json", reason) from error
    return Json(value, len(body))


def check_size(body: bytes | bytearray, what: str = "the body") -> None:
    """Refuse what the parser would take long for; raises a 422 ApiError."""
    text = marks = at = 0
    while at < len(body):
        start = _image_data(body, at)
        text += start - at
        if text <= MOST_TEXT:
            marks += sum(body.count(mark, at, start) for mark in MARKS)
        at = body.find(b'"', start)
        at = len(body) if at < 0 else at
        text += ESCAPE * _others(body, start, at)
        if text > MOST_TEXT:
            raise ApiError(
                422,
                "invalid_parameter",
                f"{what} has more than {MOST_TEXT} bytes beside plain base64 of images, the "
                "limit here; shorten its texts, and leave escapes out of base64",
            )
        if marks > MOST_MARKS:
            raise ApiError(
                422,
                "invalid_parameter",
                f"{what} has more than {MOST_MARKS} commas and opening brackets, the limit here; "
                "send fewer values or less text",
            )


def _image_data(body: bytes | bytearray, at: int) -> int:
    """Where the next image's base64 begins, or where there has been too much else."""
    end = min(len(body), at + MOST_TEXT + 1)
    for _ in range(MOST_MARKS):  # each has a comma
        at = body.find(b"64,", at, end) + 3
        if at < 3:
            break
        if body[at - 8 : at].lower() == b";base64,":
            return at
    return end


def _others(body: bytes | bytearray, start: int, end: int) -> int:
    """How many bytes there are not of base64."""
    return sum(
        len(body[at : min(at + PIECE, end)].translate(None, BASE64))
        for at in range(start, end, PIECE)
    )
