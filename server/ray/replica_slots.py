"""How many requests a gateway sends to replicas at a time, and how many wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from server.errors import too_many_requests


class ReplicaSlots:
    """Slots for requests, given in the order in which they come.

    Args:
        slots: requests that hold one at a time.
        max_waiting: requests that may wait for one.
    """

    def __init__(self, slots: int, max_waiting: int) -> None:
        self._free = asyncio.Semaphore(slots)
        self._max_waiting = max_waiting
        self._waiting = 0

    @asynccontextmanager
    async def acquire(self) -> AsyncGenerator[None, None]:
        """Hold a slot, as soon as one is free; raises a 429 ApiError where too many wait."""
        if self._free.locked() and self._waiting >= self._max_waiting:
            reason = f"too many requests wait for a replica; the limit is {self._max_waiting}"
            reason = f"{reason}; try again in a moment"
            raise too_many_requests(reason)
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()
