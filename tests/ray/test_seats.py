"""Requests that wait for a seat, and those that do not get to wait."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import ApiError
from server.ray.seats import Seats
from tests.support.waiting import eventually_async


def test_seats_are_given_in_order_and_those_too_many_refused() -> None:
    begun: list[int] = []

    async def run() -> None:
        seats, ends = Seats(2, waiting=2), [asyncio.Event() for _ in range(6)]

        async def sit(number: int) -> None:
            async with seats.taken():
                begun.append(number)
                await ends[number].wait()

        tasks = [asyncio.create_task(sit(number)) for number in range(5)]
        with pytest.raises(ApiError) as raised:
            await tasks[4]
        assert (raised.value.status, raised.value.headers["Retry-After"]) == (429, "1")
        assert begun == [0, 1]
        tasks[2].cancel()  # gives its place to another
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(sit(5)))
        ends[1].set()
        await eventually_async(lambda: begun == [0, 1, 3])
        tasks[0].cancel()
        await eventually_async(lambda: begun == [0, 1, 3, 5])
        for end in ends:
            end.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
