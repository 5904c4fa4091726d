"""From the bytes of a request to a JSON value, if that is not more than can be served."""

from __future__ import annotations

import asyncio
import codecs

from pydantic_core import from_json

from server.errors import ApiError

PARSE_ON_THREAD_ABOVE = 1_000_000  # bytes; smaller bodies parse in under two milliseconds
# The parser lets no other thread run, and millions of values take it most of a second. Commas bound
# them and are counted at once; a text with so many is longer than the context window.
MOST_COMMAS = 250_000
BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


async def decode(body: bytes, what: str = "the body") -> object:
    """The JSON value in ``body``, which errors call ``what``; raises a 400 or 422 ApiError."""
    if not body:
        raise ApiError(400, "invalid_json", f"{what} is empty; send a JSON object with messages")
    commas = body.count(b",")
    if commas > MOST_COMMAS:
        raise ApiError(
            422,
            "invalid_parameter",
            f"{what} has {commas} commas, so more values or text than can be served; the limit is "
            f"{MOST_COMMAS}",
        )
    try:
        if len(body) > PARSE_ON_THREAD_ABOVE:
            return await asyncio.to_thread(from_json, body, allow_inf_nan=False)
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        reason = f"{what} is not valid JSON: {error}"
        if body.startswith(BYTE_ORDER_MARKS):
            reason = f"{what} begins with a byte order mark; send it as UTF-8 without one"
        raise ApiError(400, "invalid_json", reason) from error
