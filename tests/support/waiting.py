"""Waiting in tests for what others do, on machines that may have much else to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

TRIES = 5
Result = TypeVar("Result")


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def within(seconds: float, act: Callable[[], Result]) -> Result:
    """What an act results in that takes less than this; the machine may keep it waiting sometimes."""
    for _ in range(TRIES):
        started = time.perf_counter()
        result = act()
        if time.perf_counter() - started < seconds:
            return result
    pytest.fail(f"it takes more than {seconds} seconds each time")
