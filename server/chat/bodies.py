"""Parses JSON bodies, within limits.

The parser holds the GIL, so bodies that would take long to parse are refused first. Base64 and plain
ASCII text parse fast.
"""

from __future__ import annotations

import asyncio
import codecs
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic_core import from_json

from server.errors import invalid_json, invalid_parameter

PARSE_ON_THREAD_ABOVE = 16_000  # bytes; smaller bodies take at most a few milliseconds
# Both exceed what the longest text that fits into the context window has. The worst body within them
# takes about 30 ms to parse.
MOST_MARKS = 80_000
MOST_SLOW = 3_000_000
MARKS = b",[{"  # each value follows one of these, or the colon of its key
QUICK = (string.ascii_letters + string.punctuation + " ").replace("\\", "").encode()
BASE64 = (string.ascii_letters + string.digits + "+/=").encode()
ESCAPE = 4  # an escape takes as long to parse as this many digits
PIECE = 1 << 20  # bytes scanned without releasing the GIL
BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

T = TypeVar("T")


@dataclass(frozen=True)
class ParsedJson:
    """A JSON value and the size of its source in bytes."""

    value: object
    size: int

    async def validate(self, validator: Callable[[object], T]) -> T:
        """Return ``validator(value)``; runs it on a thread if the body is large."""
        if self.size > PARSE_ON_THREAD_ABOVE:
            return await asyncio.to_thread(validator, self.value)
        return validator(self.value)


async def parse_json(body: bytes | bytearray, what: str = "the body") -> ParsedJson:
    """Parse ``body``, which errors refer to as ``what``; raises a 400 or 422 ApiError."""
    if len(body) > PARSE_ON_THREAD_ABOVE:
        return await asyncio.to_thread(_parse_json, body, what)
    return _parse_json(body, what)


def _parse_json(body: bytes | bytearray, what: str) -> ParsedJson:
    if not body:
        raise invalid_json(f"{what} is empty; send a JSON object with messages")
    check_size(body, what)
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings="none")  # few strings repeat
    except ValueError as error:
        reason = f"{what} is not valid JSON: {error}"
        if body.startswith(BYTE_ORDER_MARKS):
            reason = f"{what} begins with a byte order mark; send it as UTF-8 without one"
        raise invalid_json(reason) from error
    return ParsedJson(value, len(body))


def check_size(body: bytes | bytearray, what: str = "the body") -> None:
    """Refuse a body that would take long to parse; raises a 422 ApiError."""
    marks = slow = at = 0
    while at < len(body):
        start = _image_data(body, at, at + PIECE)
        text = body[at : at + PIECE if start is None else start]
        marks += sum(map(text.count, MARKS))
        slow += len(text.translate(None, QUICK)) + (ESCAPE - 1) * text.count(b"\\")
        at += len(text)
        if start is not None:
            at = body.find(b'"', start)
            at = len(body) if at < 0 else at
            slow += ESCAPE * _others(body, start, at)
        if marks > MOST_MARKS:
            raise invalid_parameter(
                f"{what} has more commas and opening brackets than the limit of {MOST_MARKS}; "
                "send fewer values or less text",
            )
        if slow > MOST_SLOW:
            raise invalid_parameter(
                f"{what} has more digits, line breaks and non-ASCII bytes than the limit of {MOST_SLOW} "
                f"(each escape counts as {ESCAPE}); shorten the texts, and send images as plain base64",
            )


def _image_data(body: bytes | bytearray, at: int, end: int) -> int | None:
    """The position before ``end`` where the next image's base64 begins, if any."""
    for _ in range(MOST_MARKS):
        at = body.find(b",", at, end) + 1
        if not at:
            break
        if body[max(0, at - 8) : at].lower() == b";base64,":
            return at
    return None


def _others(body: bytes | bytearray, start: int, end: int) -> int:
    """The number of bytes in the range that are not base64."""
    return sum(
        len(body[at : min(at + PIECE, end)].translate(None, BASE64))
        for at in range(start, end, PIECE)
    )
