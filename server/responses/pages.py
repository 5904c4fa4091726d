"""Pages of a response's input items."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple, cast

from pydantic_core import from_json

from server.errors import ApiError, invalid_parameter, short_name
from server.responses.items import Item
from server.responses.store import StoredResponse
from server.schemas.responses_object import InputItemList

DEFAULT_PAGE, LARGEST_PAGE = 20, 100
ORDERS = ("asc", "desc")


class Page(NamedTuple):
    """Which items are wanted.

    Attributes:
        limit: maximum number of items.
        newest_first: the order.
        after: id of the last item before the page.
    """

    limit: int
    newest_first: bool
    after: str | None


def page_of(query: Mapping[str, str]) -> Page:
    """Read the page that a query asks for; raises a 422 ApiError."""
    limit = query.get("limit", str(DEFAULT_PAGE))
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 4) or not (
        1 <= int(limit) <= LARGEST_PAGE
    ):
        raise invalid_parameter(
            f"limit is {short_name(limit)!r}; it must be from 1 to {LARGEST_PAGE}", (), limit
        )
    order = query.get("order", "desc")
    if order not in ORDERS:
        raise invalid_parameter(
            f"order is {short_name(order)!r}; it must be asc or desc", (), order
        )
    return Page(int(limit), order == "desc", query.get("after"))


async def input_items(stored: StoredResponse, page: Page) -> InputItemList:
    """A page of the response's input items.

    Raises:
        ApiError: 404, the page is to begin after an item that the response does not have.
    """
    items = cast("list[Item]", await asyncio.to_thread(from_json, stored.input))
    if page.newest_first:
        items.reverse()
    start = 0
    if page.after is not None:
        ids = [item["id"] for item in items]
        if page.after not in ids:
            reason = f"the response has no input item with the id '{short_name(page.after)}'"
            raise ApiError(404, "not_found", f"{reason}; set after to the last_id of a page")
        start = ids.index(page.after) + 1
    data = items[start : start + page.limit]
    return InputItemList(
        data=data,
        first_id=data[0]["id"] if data else None,
        last_id=data[-1]["id"] if data else None,
        has_more=start + page.limit < len(items),
    )
