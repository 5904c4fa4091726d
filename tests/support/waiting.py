"""Waiting in tests for what others do, on machines that may have much else to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import pytest

TRIES = 5
PAUSE = 0.02  # seconds between two looks
Result = TypeVar("Result")


def eventually(
    condition: Callable[[], Result | None], seconds: float = 60, what: str = ""
) -> Result:
    """The first true value of the condition, asked again and again; fails if that takes too long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            _fail(condition, value, seconds, what)
        time.sleep(PAUSE)
    return value


async def eventually_async(
    condition: Callable[[], Result | None], seconds: float = 60, what: str = ""
) -> Result:
    """Like ``eventually``, and the event loop goes on meanwhile."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            _fail(condition, value, seconds, what)
        await asyncio.sleep(PAUSE)
    return value


def _fail(condition: Callable[[], object], value: object, seconds: float, what: str) -> NoReturn:
    hoped = what or getattr(condition, "__qualname__", repr(condition))
    pytest.fail(f"after {seconds:g} seconds still not so: {hoped} (last seen: {value!r})")


async def until(condition: Callable[[], bool]) -> None:
    await eventually_async(condition)


def within(seconds: float, act: Callable[[], Result]) -> Result:
    """What an act results in that takes less than this; the machine may keep it waiting sometimes."""
    for _ in range(TRIES):
        started = time.perf_counter()
        result = act()
        if time.perf_counter() - started < seconds:
            return result
    pytest.fail(f"it takes more than {seconds} seconds each time")
