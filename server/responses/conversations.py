"""Finds the stored items that a request continues or refers to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from server.chat.bodies import parse_json
from server.errors import ApiError, Loc, invalid_parameter, not_supported, short_name, too_large
from server.responses.items import Item, references
from server.responses.store import ResponseStore, StoredResponse
from server.schemas.responses_request import ResponsesRequest


@dataclass(frozen=True)
class Conversation:
    """The stored items that a request needs.

    Attributes:
        earlier: the items of the responses that it continues, the oldest first.
        referenced: the items that its input refers to, by id.
        size: bytes of JSON.
    """

    earlier: Sequence[Item] = ()
    referenced: Mapping[str, Item] = field(default_factory=dict)
    size: int = 0


@dataclass(frozen=True)
class StoredResponses:
    """The stored responses of one caller.

    Attributes:
        store: stores them.
        caller: the caller's name.
        hold: called with the bytes that a request takes from the store; its exceptions are propagated.
        most_bytes: maximum bytes of a request and the conversation that it continues.
        most_messages: maximum number of messages in a conversation.
    """

    store: ResponseStore
    caller: str
    hold: Callable[[int], None]
    most_bytes: int
    most_messages: int

    async def conversation(self, request: ResponsesRequest, size: int) -> Conversation:
        """Find the stored items that a request of ``size`` bytes needs.

        Raises:
            ApiError: 404, they are not stored; 413 or 422, they are too many; 429, too much is held.
        """
        previous = request.previous_response_id
        wanted = references(request.input)
        if previous is None and not wanted:
            return Conversation()
        _refuse_repetitions(wanted)
        chain: list[StoredResponse] = []
        if previous is not None:
            left = self.most_bytes - size
            chain = self.store.conversation(self.caller, previous, left, self.most_messages)
        others = {stored.id: stored for stored in (self._holding(*each) for each in wanted)}
        total = sum(stored.conversation_size for stored in (*chain, *others.values()))
        if size + total > self.most_bytes:
            raise too_large(
                f"the request and the stored items it refers to are larger than {self.most_bytes} bytes "
                "(--max-body-mb); start a new conversation"
            )
        self.hold(total)
        earlier = await _items(chain)
        by_id = {item["id"]: item for item in await _items(others.values())}
        for loc, item in wanted:
            if item not in by_id:
                raise _not_found(loc, item)
        return Conversation(earlier, by_id, total)

    def keep(self, response: StoredResponse) -> None:
        """Store a response."""
        self.store.put(self.caller, response)

    def _holding(self, loc: Loc, item: str) -> StoredResponse:
        stored = self.store.holding(self.caller, item)
        if stored is None:
            raise _not_found(loc, item)
        return stored


async def _items(responses: Iterable[StoredResponse]) -> list[Item]:
    """All items of the responses; parsed within the limits of a request's body."""
    lists = [items[1:-1] for stored in responses for items in (stored.input, stored.output)]
    together = b",".join(filter(None, lists))  # the input may be empty
    parsed = await parse_json(b"[" + together + b"]", "the stored conversation")
    return cast("list[Item]", parsed.value)


def _refuse_repetitions(references: Sequence[tuple[Loc, str]]) -> None:
    """Refuse several references to one item, which could make a small request arbitrarily large."""
    seen: set[str] = set()
    for loc, item in references:
        if item in seen:
            reason = (
                f"{'.'.join(map(str, loc[:2]))} refers to the same item as one before; remove it"
            )
            raise invalid_parameter(reason, loc, short_name(item))
        seen.add(item)


def _not_found(loc: Loc, item: str) -> ApiError:
    reason = (
        f"Item with id '{short_name(item)}' not found. It may have been deleted, or dropped to save memory; "
        "send the item itself instead."
    )
    return ApiError(404, "item_not_found", reason, loc, short_name(item))


def refuse_stored(request: ResponsesRequest, why: str) -> None:
    """Refuse a request that needs stored items; raises a 422 ApiError."""
    if request.previous_response_id is not None:
        raise not_supported(
            f"previous_response_id is not supported: {why}; send the whole conversation as input",
            ("previous_response_id",),
            request.previous_response_id,
        )
    for loc, item in references(request.input):
        raise not_supported(
            f"{'.'.join(map(str, loc[:2]))} is a reference to a stored item, which is not supported: "
            f"{why}; send the item itself",
            loc,
            item,
        )
