"""Computes which requests should meet at one replica: a digest of how their conversations begin.

Requests that name a stored response must go to the replica that stores it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

from pydantic_core import from_json

from server.chat.bodies import check_size
from server.errors import ApiError
from server.responses.ids import place_of, response_of_item

# Limits on what is hashed, so that the cost of a digest is bounded.
MESSAGES = 16
PARTS = 16
CHARACTERS = 2048  # of each text; texts that differ later still share a prefix
URL_CHARACTERS = 16_384  # at each end of an image's URL

STORED = re.compile(r"/responses/(resp_[0-9A-Za-z]+)(?:/|$)")
PINNED = re.compile(r"(slot|free)@([0-9A-Za-z]+)")


class Pin(NamedTuple):
    """The replica that a session must go to, and whether its requests take a slot there."""

    replica: str
    takes_slot: bool


def pinned_session(replica: str, takes_slot: bool) -> str:
    """The session of requests that must go to a replica; those without a slot do not wait for one."""
    return f"{'slot' if takes_slot else 'free'}@{replica}"


def pin_of(session: str) -> Pin | None:
    """The replica that a session is pinned to, if any."""
    match = PINNED.fullmatch(session)
    return Pin(match[2], match[1] == "slot") if match else None


def path_session(path: str) -> str:
    """The session of a request for a stored response; empty for other paths."""
    match = STORED.search(path)
    replica = place_of(match[1]) if match else ""
    return pinned_session(replica, takes_slot=False) if replica else ""


def affinity(body: bytes) -> str:
    """Hash the image of the first user message, or without one, the texts up to that message.

    In the prompt, an image usually comes before the text of its turn, so questions about one image share it.
    Of several images in a message, the first counts.

    Args:
        body: the body of any request.

    Returns:
        hexadecimal digits, or a pinned session if the conversation is stored; empty if the body is not a
        conversation.
    """
    try:
        check_size(body)
        document = from_json(body)
    except (ApiError, ValueError):
        return ""
    replica = _replica_of(document)
    if replica:
        return pinned_session(replica, takes_slot=True)
    seen: list[str] = []
    for text in _texts(document, "instructions", "input"):
        seen.append(text[:CHARACTERS])
    key = "messages" if isinstance(document, dict) and "messages" in document else "input"
    for message in _items(document, key, MESSAGES):
        seen += [text[:CHARACTERS] for text in _texts(message, "content")]
        for part in _items(message, "content", PARTS):
            url = _url(part)
            if url:
                return _digest([url[:URL_CHARACTERS], url[-URL_CHARACTERS:], str(len(url))])
            seen += [text[:CHARACTERS] for text in _texts(part, "text")]
        if message.get("role") == "user":
            break
    return _digest(seen) if seen else ""


def _replica_of(document: Any) -> str:
    """The replica that stores what a request for a response continues or refers to."""
    for previous in _texts(document, "previous_response_id"):
        return place_of(previous)
    for item in _items(document, "input", MESSAGES):
        for name in _texts(item, "id") if item.get("type") == "item_reference" else ():
            return place_of(response_of_item(name) or "")
    return ""


def _texts(value: Any, *keys: str) -> list[str]:
    """Those of the values that are strings."""
    found = [value.get(key) for key in keys] if isinstance(value, dict) else []
    return [text for text in found if isinstance(text, str)]


def _items(value: Any, key: str, at_most: int) -> list[dict[str, Any]]:
    """The first objects in the list ``value[key]``, if it is one."""
    items = value.get(key) if isinstance(value, dict) else None
    return (
        [item for item in items[:at_most] if isinstance(item, dict)]
        if isinstance(items, list)
        else []
    )


def _url(part: dict[str, Any]) -> str:
    """The URL of an image, which the Responses API does not put in an object."""
    image = part.get("image_url") or part.get("image")
    url = image.get("url") if isinstance(image, dict) else image
    return url if isinstance(url, str) else ""


def _digest(texts: list[str]) -> str:
    joined = "\0".join(texts).encode(errors="surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).hexdigest()
