"""Who waits for whom when requests are prepared."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from model.engine.pool import Pool, Turns
from tests.support.waiting import eventually_async


@asynccontextmanager
async def held(turns: Turns, caller: str, order: list[str]) -> AsyncIterator[None]:
    async with turns.taken(caller):
        order.append(caller)
        yield


async def take(turns: Turns, caller: str, order: list[str]) -> None:
    async with held(turns, caller, order):
        await asyncio.sleep(0)


def test_callers_take_turns() -> None:
    """One with much to do waits for itself; others are let in between."""

    async def scenario() -> None:
        turns, order = Turns(1), []  # type: tuple[Turns, list[str]]
        callers = ["a", "a", "a", "a", "b", "b", "c"]
        await asyncio.gather(*(take(turns, caller, order) for caller in callers))
        assert order == ["a", "a", "b", "c", "a", "b", "a"]

    asyncio.run(scenario())


def test_who_leaves_the_queue_takes_nothing_along() -> None:
    async def scenario() -> None:
        turns, order = Turns(2), []  # type: tuple[Turns, list[str]]
        for _ in range(20):
            tasks = [asyncio.create_task(take(turns, name, order)) for name in "aabbccdd"]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with turns.taken("x"), turns.taken("y"):  # both seats are there
            waiting = asyncio.create_task(take(turns, "z", order))
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting

    asyncio.run(scenario())


def with_pool(scenario: Callable[[Pool], Any]) -> None:
    async def run() -> None:
        pool = Pool("test")
        try:
            await scenario(pool)
        finally:
            pool.close()

    asyncio.run(run())


def test_a_cancelled_call_ends_with_its_work() -> None:
    """What the work holds is held until then."""

    async def scenario(pool: Pool) -> None:
        begun, go_on, unwanted = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            assert unwanted.wait(60)
            assert go_on.wait(60)

        call = asyncio.create_task(pool.run("", work, unwanted))
        await eventually_async(begun.is_set)
        call.cancel()
        await eventually_async(unwanted.is_set)
        call.cancel()  # again
        done, _ = await asyncio.wait([call], timeout=0)
        assert not done
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await call

    with_pool(scenario)


def test_what_work_raises_is_raised() -> None:
    async def scenario(pool: Pool) -> None:
        def work() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await pool.run("", work)
        assert await pool.run("", lambda: 7) == 7

    with_pool(scenario)
