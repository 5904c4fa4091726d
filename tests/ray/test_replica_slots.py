"""Requests that wait for a slot, and those that do not get to wait."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import ApiError
from server.ray.replica_slots import ReplicaSlots
from tests.support.waiting import eventually_async


def test_slots_are_given_in_order_and_those_too_many_refused() -> None:
    begun: list[int] = []

    async def run() -> None:
        slots, ends = ReplicaSlots(2, max_waiting=2), [asyncio.Event() for _ in range(6)]

        async def hold(number: int) -> None:
            async with slots.acquire():
                begun.append(number)
                await ends[number].wait()

        tasks = [asyncio.create_task(hold(number)) for number in range(5)]
        with pytest.raises(ApiError) as raised:
            await tasks[4]
        assert (raised.value.status, raised.value.headers["Retry-After"]) == (429, "1")
        assert begun == [0, 1]
        tasks[2].cancel()  # another takes its place in the queue
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(hold(5)))
        ends[1].set()
        await eventually_async(lambda: begun == [0, 1, 3])
        tasks[0].cancel()
        await eventually_async(lambda: begun == [0, 1, 3, 5])
        for end in ends:
            end.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
