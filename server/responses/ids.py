"""Ids of responses and their items.

A response's id is ``resp_``, 32 random digits and the name of the place that stores it, which is empty
unless there are several. Its items' ids name the response, so that both can be found by either.
"""

from __future__ import annotations

import re

RANDOM = 32  # hexadecimal digits
RESPONSE = re.compile(rf"resp_([0-9a-f]{{{RANDOM}}}[0-9A-Za-z]*)")
ITEM = re.compile(rf"(?:msg|fc|fco)_([0-9a-f]{{{RANDOM}}}[0-9A-Za-z]*)_i?[0-9]+")


def response_id(random: str, place: str) -> str:
    """The id of a response; ``place`` has only ASCII letters and digits."""
    return f"resp_{random}{place}"


def item_id(response: str, kind: str, position: int | str) -> str:
    """The id of an item of a response.

    Args:
        response: the response's id.
        kind: ``msg``, ``fc`` or ``fco``.
        position: position in the output, or ``i`` and the position in the input.
    """
    return f"{kind}_{response.removeprefix('resp_')}_{position}"


def response_of_item(item: str) -> str | None:
    """The id of the response that an item belongs to; None if the item's id is not one of this server's."""
    match = ITEM.fullmatch(item)
    return match and f"resp_{match[1]}"


def place_of(response: str) -> str:
    """The place that stores a response; empty if its id names none."""
    match = RESPONSE.fullmatch(response)
    return match[1][RANDOM:] if match else ""
