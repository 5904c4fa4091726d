"""Waiting in tests for what others do, on machines that may have much else to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import pytest

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
