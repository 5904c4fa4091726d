"""Computes which requests should share a prefix cache: a digest of how their conversations begin."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic_core import from_json

from server.chat.bodies import check_size
from server.errors import ApiError

# Limits on what is hashed, so that the cost of a digest is bounded.
MESSAGES = 16
PARTS = 16
CHARACTERS = 2048  # of each text; texts that differ later still share a prefix
URL_CHARACTERS = 16_384  # at each end of an image's URL


def affinity(body: bytes) -> str:
    """Hash the image of the first user message, or without one, the texts up to that message.

    In the prompt, an image usually comes before the text of its turn, so questions about one image share it.
    Of several images in a message, the first counts.

    Args:
        body: the body of any request.

    Returns:
        hexadecimal digits; empty if the body is not a conversation.
    """
    try:
        check_size(body)
        document = from_json(body)
    except (ApiError, ValueError):
        return ""
    seen: list[str] = []
    for message in _items(document, "messages", MESSAGES):
        content = message.get("content")
        if isinstance(content, str):
            seen.append(content[:CHARACTERS])
        for part in _items(message, "content", PARTS):
            url = _url(part)
            if url:
                return _digest([url[:URL_CHARACTERS], url[-URL_CHARACTERS:], str(len(url))])
            if isinstance(part.get("text"), str):
                seen.append(part["text"][:CHARACTERS])
        if message.get("role") == "user":
            break
    return _digest(seen) if seen else ""


def _items(value: Any, key: str, at_most: int) -> list[dict[str, Any]]:
    """The first objects in the list ``value[key]``, if it is one."""
    items = value.get(key) if isinstance(value, dict) else None
    return (
        [item for item in items[:at_most] if isinstance(item, dict)]
        if isinstance(items, list)
        else []
    )


def _url(part: dict[str, Any]) -> str:
    image = part.get("image_url") or part.get("image")
    url = image.get("url") if isinstance(image, dict) else None
    return url if isinstance(url, str) else ""


def _digest(texts: list[str]) -> str:
    joined = "\0".join(texts).encode(errors="surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).hexdigest()
