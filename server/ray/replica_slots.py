"""How many requests are at work at a time, and how many wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from server.errors import RETRY_AFTER, ApiError


class Seats:
    """Seats for requests, which wait for one in the order in which they come.

    Args:
        seats: requests that have one at a time.
        waiting: requests that wait at most.
    """

    def __init__(self, seats: int, waiting: int) -> None:
        self._free = asyncio.Semaphore(seats)
        self._most_waiting = waiting
        self._waiting = 0

    @asynccontextmanager
    async def taken(self) -> AsyncGenerator[None, None]:
        """Have a seat, as soon as there is one; raises a 429 ApiError where too many wait."""
        if self._free.locked() and self._waiting >= self._most_waiting:
            reason = f"{self._most_waiting} requests wait for a replica, the limit here"
            reason = f"{reason}; try again in a moment"
            raise ApiError(429, "too_many_requests", reason, headers=RETRY_AFTER)
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()
