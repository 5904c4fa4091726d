"""The helpers that wait tell what they saw, and what they waited for in vain."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.waiting import eventually, eventually_async


def test_the_first_true_value_is_returned() -> None:
    values = iter([None, 0, "", "found", "too far"])
    assert eventually(lambda: next(values)) == "found"
    assert asyncio.run(eventually_async(lambda: next(values))) == "too far"


def test_what_never_comes_true_fails_and_says_what() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"after 0\.1 seconds .* a pig flies .*None"):
        eventually(lambda: None, seconds=0.1, what="a pig flies")
    with pytest.raises(pytest.fail.Exception, match=r"after 0\.1 seconds .*\[\]"):
        asyncio.run(eventually_async(list, seconds=0.1))


def test_an_error_of_the_condition_is_not_waited_out() -> None:
    with pytest.raises(ZeroDivisionError):
        eventually(lambda: 1 / 0)


def test_others_run_while_one_waits() -> None:
    async def scenario() -> None:
        ready: list[int] = []
        asyncio.get_running_loop().call_later(0.05, ready.append, 1)
        assert await eventually_async(lambda: ready) == [1]

    asyncio.run(scenario())
