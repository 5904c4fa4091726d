"""From the bytes of a body to a JSON value, within bounds.

The parser holds the GIL, so a body that would take it long is refused first. It is quick with base64
and with plain text in ASCII.
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

PARSE_ON_THREAD_ABOVE = 16_000  # bytes; smaller ones are parsed and validated in a few milliseconds
# Both are more than the longest text that fits into the context window has; the worst that is within
# them takes the parser some 30 ms.
MOST_MARKS = 80_000
MOST_SLOW = 3_000_000
MARKS = b",[{"  # before each value stands one, or the colon of its key
QUICK = (string.ascii_letters + string.punctuation + " ").replace("\\", "").encode()
BASE64 = (string.ascii_letters + string.digits + "+/=").encode()
ESCAPE = 4  # as many digits take as long
PIECE = 1 << 20  # bytes looked at while holding the GIL
BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

T = TypeVar("T")


@dataclass(frozen=True)
class ParsedJson:
    """A JSON value, and the size in bytes of what it was parsed from."""

    value: object
    size: int

    async def validate(self, validator: Callable[[object], T]) -> T:
        """What ``validator`` makes of the value; it runs on a thread where that may take a while."""
        if self.size > PARSE_ON_THREAD_ABOVE:
            return await asyncio.to_thread(validator, self.value)
        return validator(self.value)


async def parse_json(body: bytes | bytearray, what: str = "the body") -> ParsedJson:
    """The JSON value in ``body``, which errors call ``what``; raises a 400 or 422 ApiError."""
    if len(body) > PARSE_ON_THREAD_ABOVE:
        return await asyncio.to_thread(_parse_json, body, what)
    return _parse_json(body, what)


def _parse_json(body: bytes | bytearray, what: str) -> ParsedJson:
    if not body:
        raise invalid_json(f"{what} is empty; send a JSON object with messages")
    check_size(body, what)
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings="none")  # few are alike
    except ValueError as error:
        reason = f"{what} is not valid JSON: {error}"
        if body.startswith(BYTE_ORDER_MARKS):
            reason = f"{what} begins with a byte order mark; send it as UTF-8 without one"
        raise invalid_json(reason) from error
    return ParsedJson(value, len(body))


def check_size(body: bytes | bytearray, what: str = "the body") -> None:
    """Refuse what would take the parser long; raises a 422 ApiError."""
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
    """Where the next image's base64 begins, if that is before ``end``."""
    for _ in range(MOST_MARKS):
        at = body.find(b",", at, end) + 1
        if not at:
            break
        if body[max(0, at - 8) : at].lower() == b";base64,":
            return at
    return None


def _others(body: bytes | bytearray, start: int, end: int) -> int:
    """How many bytes in that range are not base64."""
    return sum(
        len(body[at : min(at + PIECE, end)].translate(None, BASE64))
        for at in range(start, end, PIECE)
    )
