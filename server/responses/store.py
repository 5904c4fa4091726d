"""Keeps responses in memory, so that they can be fetched and continued.

Each caller finds only its own. What was not used for some time is dropped, and the oldest of the caller
that holds most when the memory is
full. Call everything on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from server.errors import ApiError, short_name, too_large
from server.responses.ids import response_of_item

OVERHEAD = 2000  # bytes that an entry takes besides its JSON
LONGEST_PAUSE = 60.0  # seconds between sweeps


@dataclass(frozen=True)
class StoredResponse:
    """A response and its part of the conversation, all as JSON.

    Attributes:
        id: id of the response.
        previous: id of the response that it continues, if any.
        response: the response object, in pieces.
        input: list of the normalized input items.
        output: list of the output items, without log probabilities.
    """

    id: str
    previous: str | None
    response: tuple[bytes, ...]
    input: bytes
    output: bytes

    @property
    def size(self) -> int:
        """Bytes of memory."""
        pieces = sum(len(piece) + 40 for piece in self.response)
        return pieces + len(self.input) + len(self.output) + OVERHEAD

    @property
    def conversation_size(self) -> int:
        """Bytes of JSON that it adds to a conversation."""
        return len(self.input) + len(self.output)


@dataclass
class _Shelf:
    """The responses of one caller, the least recently used first, each with the time of its last use."""

    entries: OrderedDict[str, tuple[StoredResponse, float]] = field(default_factory=OrderedDict)
    size: int = 0


class ResponseStore:
    """Stores responses within limits.

    Args:
        memory: maximum bytes; 0 stores nothing.
        seconds: how long a response is kept after its last use.
        place: name of this store if there are several; part of the ids of its responses.
        clock: the time, in seconds.
    """

    def __init__(
        self,
        memory: int,
        seconds: float,
        place: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.place = place
        self.size = 0
        self._memory = memory
        self._seconds = seconds
        self._clock = clock
        self._shelves: dict[str, _Shelf] = {}
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def is_on(self) -> bool:
        """Whether it stores anything."""
        return self._memory > 0

    def put(self, caller: str, stored: StoredResponse) -> None:
        """Store a response, unless it is larger than the whole store."""
        if stored.size > self._memory:
            return
        shelf = self._shelves.setdefault(caller, _Shelf())
        shelf.entries[stored.id] = (stored, self._clock())
        shelf.size += stored.size
        self.size += stored.size
        while self.size > self._memory:
            name = max(self._shelves, key=lambda caller: self._shelves[caller].size)
            self._drop(name, next(iter(self._shelves[name].entries)))
        if self._sweep is None:
            self._sweep_later()

    def get(self, caller: str, response: str) -> StoredResponse:
        """Find a response; raises a 404 ApiError, also for those of other callers."""
        stored = self._used(caller, response)
        if stored is None:
            raise not_stored(response)
        return stored

    def delete(self, caller: str, response: str) -> None:
        """Delete a response; raises a 404 ApiError."""
        self.get(caller, response)
        self._drop(caller, response)

    def conversation(
        self, caller: str, response: str, most_bytes: int, most_responses: int
    ) -> list[StoredResponse]:
        """The response and those that it continues, the oldest first.

        Args:
            caller: the caller's name.
            response: id of the last response.
            most_bytes: maximum bytes of JSON.
            most_responses: maximum number of responses.

        Raises:
            ApiError: 404, one of them is not stored; 413, they exceed the limits.
        """
        found: list[StoredResponse] = []
        size, following = 0, ""
        wanted: str | None = response
        while wanted is not None:
            stored = self._used(caller, wanted)
            if stored is None:
                raise _not_continued(wanted, following)
            found.append(stored)
            size += stored.conversation_size
            if size > most_bytes or len(found) > most_responses:
                raise too_large(
                    "the conversation that previous_response_id continues is longer than the limits of "
                    f"{most_bytes} bytes and {most_responses} responses that this request leaves "
                    "(--max-body-mb, --max-messages); start a new one"
                )
            wanted, following = stored.previous, stored.id
        return found[::-1]

    def holding(self, caller: str, item: str) -> StoredResponse | None:
        """The response that an item belongs to, by the item's id."""
        response = response_of_item(item)
        return None if response is None else self._used(caller, response)

    def _used(self, caller: str, response: str) -> StoredResponse | None:
        """Find a response and note its use."""
        shelf = self._shelves.get(caller)
        if shelf is None or response not in shelf.entries:
            return None
        stored, used_at = shelf.entries[response]
        if self._clock() - used_at > self._seconds:
            self._drop(caller, response)
            return None
        shelf.entries[response] = (stored, self._clock())
        shelf.entries.move_to_end(response)
        return stored

    def _drop(self, caller: str, response: str) -> None:
        shelf = self._shelves[caller]
        stored, _ = shelf.entries.pop(response)
        shelf.size -= stored.size
        self.size -= stored.size
        if not shelf.entries:
            del self._shelves[caller]

    def drop_old(self) -> None:
        """Drop what has not been used for too long."""
        before = self._clock() - self._seconds
        for caller, shelf in list(self._shelves.items()):
            while shelf.entries:
                stored, used_at = next(iter(shelf.entries.values()))
                if used_at >= before:
                    break
                self._drop(caller, stored.id)

    def _sweep_later(self) -> None:
        pause = min(max(self._seconds / 10, 1), LONGEST_PAUSE)
        self._sweep = asyncio.get_running_loop().call_later(pause, self._sweep_now)

    def _sweep_now(self) -> None:
        self.drop_old()
        self._sweep = None
        if self._shelves:
            self._sweep_later()


def _not_continued(wanted: str, following: str) -> ApiError:
    """The error if ``wanted``, which the response ``following`` continues, is not stored."""
    continued = f" (which '{following}' continues)" if following else ""
    reason = (
        f"Previous response with id '{short_name(wanted)}'{continued} not found. It may have been deleted, "
        "or dropped to save memory; send the whole conversation as input instead."
    )
    return ApiError(
        404, "previous_response_not_found", reason, ("previous_response_id",), short_name(wanted)
    )


def not_stored(response: str) -> ApiError:
    """The error for a response that is not stored, or not for this caller."""
    return ApiError(404, "not_found", f"Response with id '{short_name(response)}' not found.")
