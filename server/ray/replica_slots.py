"""Limits how many requests a gateway sends to replicas, and how many wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from server.errors import too_many_requests


class ReplicaSlots:
    """Slots for requests, assigned in order of arrival.

    Args:
        slots: number of slots.
        max_waiting: maximum number of waiting requests.
    """

    def __init__(self, slots: int, max_waiting: int) -> None:
        self._free = asyncio.Semaphore(slots)
        self._max_waiting = max_waiting
        self._waiting = 0

    @asynccontextmanager
    async def acquire(self) -> AsyncGenerator[None, None]:
        """Wait for a slot and hold it; raises a 429 ApiError if too many requests wait."""
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
