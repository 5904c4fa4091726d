"""Faults in every part of a step: the request that they are due to ends, and nobody else notices."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from model import (
    EngineDeadError,
    LoadOptions,
    Message,
    MessageImage,
    ModelError,
    SamplingParams,
    load_engine,
)
from model.engine.async_engine import AsyncEngine
from model.errors import StepFailedError
from tests.support.engines.engine_faults import (
    FAULTS,
    GREEDY,
    GUIDED,
    GUIDED_VICTIM,
    PASSING,
    SECRET,
    VICTIM,
    Inject,
    in_runner,
    in_token_masks,
    in_tower,
)
from tests.support.waiting import eventually_async

Scenario = Callable[[AsyncEngine], Awaitable[None]]


def with_engine(tiny: Path, scenario: Scenario, **options: Any) -> None:
    async def run() -> None:
        load = LoadOptions(model=str(tiny), dtype="float32", max_model_len=2048, **options)
        engine, _ = await load_engine(load)
        try:
            await scenario(engine)
        finally:
            engine.shutdown()

    asyncio.run(run())


def picture(colour: str) -> MessageImage:
    return MessageImage(lambda: Image.new("RGB", (300, 300), colour))


def question(number: int, *images: MessageImage) -> list[Message]:
    return [Message("user", f"number {number} " * 5, images)]


async def text(
    engine: AsyncEngine, messages: list[Message], params: SamplingParams
) -> str | ModelError:
    generation = await engine.generate(messages, params)
    try:
        return "".join([delta.text async for delta in generation])
    except ModelError as error:
        return error
    finally:
        generation.close()


def other_threads() -> int:
    """How many there are beside those of pools, which start as they are needed, to a number."""
    pools = ("text_", "image_", "grammar_")
    return sum(not thread.name.startswith(pools) for thread in threading.enumerate())


@contextmanager
def nothing_is_left(engine: AsyncEngine) -> Iterator[None]:
    process = psutil.Process()
    threads, files = other_threads(), process.num_fds()
    yield
    assert engine.is_alive
    assert other_threads() <= threads
    assert process.num_fds() <= files


async def is_empty(engine: AsyncEngine) -> None:
    await eventually_async(lambda: engine.describe().is_idle)


async def beside(
    engine: AsyncEngine, inject: Inject, victim: tuple[list[Message], SamplingParams]
) -> str | ModelError:
    """What becomes of the victim; its neighbours' answers must be those they get alone."""
    others = [(question(i), GREEDY) for i in range(4)]
    others.append((question(5), GUIDED))
    others.append((question(6, picture("red")), GREEDY))
    alone = [await text(engine, *other) for other in others]
    assert not [answer for answer in alone if isinstance(answer, Exception)]
    await asyncio.gather(*(text(engine, *each) for each in [victim, *others]))  # all threads
    outcomes: list[str | ModelError] = []
    with nothing_is_left(engine):
        for _ in range(2):
            with pytest.MonkeyPatch.context() as patch:
                inject(patch)
                outcome, *together = await asyncio.gather(
                    text(engine, *victim), *(text(engine, *other) for other in others)
                )
            assert together == alone
            outcomes.append(outcome)
            await is_empty(engine)
    assert isinstance(await text(engine, *victim), str)
    return outcomes[-1]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_the_answer_it_is_due_to(
    tiny: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        outcome = await beside(engine, FAULTS[fault], (question(9), VICTIM))
        assert isinstance(outcome, StepFailedError)
        assert SECRET not in str(outcome)
        assert "log" in str(outcome)

    with caplog.at_level(logging.CRITICAL):
        with_engine(tiny, scenario)


def test_a_fault_in_token_masks(tiny: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        outcome = await beside(engine, in_token_masks, (question(9), GUIDED_VICTIM))
        assert isinstance(outcome, StepFailedError)

    with_engine(tiny, scenario)


def test_a_fault_in_the_vision_tower(tiny: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        outcome = await beside(engine, in_tower, (question(9, picture("black")), VICTIM))
        assert isinstance(outcome, StepFailedError)

    # Without what would spare the tower an image that it has seen.
    with_engine(tiny, scenario, prefix_caching=False, embedding_cache_memory=0)


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_is_nobodys_ends_no_answer(tiny: Path, fault: str) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        alone = await text(engine, question(9), VICTIM)
        assert await beside(engine, PASSING[fault], (question(9), VICTIM)) == alone

    with_engine(tiny, scenario)


def test_several_answers_to_a_prompt_end_together(tiny: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        several = replace(GREEDY, n=3)
        inject = in_runner(lambda cs: any(c.sequence.key[1] == 1 and c.decodes for c in cs))
        with pytest.MonkeyPatch.context() as patch:
            inject(patch)
            assert isinstance(await text(engine, question(1), several), StepFailedError)
            assert isinstance(await text(engine, question(1), GREEDY), str)
        await is_empty(engine)

    with_engine(tiny, scenario)


@pytest.mark.parametrize(
    "error", [SystemExit(SECRET), torch.AcceleratorError(f"an illegal access {SECRET}")]
)
def test_a_thread_that_ends_leaves_nobody_waiting(tiny: Path, error: BaseException) -> None:
    """Killed, or on a device that does not recover."""

    async def scenario(engine: AsyncEngine) -> None:
        others = [text(engine, question(i), replace(GREEDY, max_tokens=1500)) for i in range(3)]
        waiting = asyncio.gather(*others)
        await eventually_async(lambda: engine.stats().running == 3)
        with pytest.MonkeyPatch.context() as patch:
            in_runner(lambda _: True, error)(patch)
            ended = await asyncio.wait_for(waiting, 60)
        assert all(isinstance(answer, EngineDeadError) for answer in ended)
        assert not [answer for answer in ended if SECRET in str(answer)]
        assert not engine.is_alive
        with pytest.raises(EngineDeadError):
            await engine.generate(question(9), GREEDY)
        assert not engine.is_busy

    with_engine(tiny, scenario)


def test_faults_while_others_come_and_go(tiny: Path) -> None:
    """A hundred faults in a row leave threads, files and blocks as they were."""

    async def scenario(engine: AsyncEngine) -> None:
        alone = await text(engine, question(1), GREEDY)
        fds = psutil.Process().num_fds()
        with pytest.MonkeyPatch.context() as patch:
            FAULTS["decode"](patch)
            for _ in range(100):
                assert isinstance(await text(engine, question(9), VICTIM), StepFailedError)
            assert await text(engine, question(1), GREEDY) == alone
        await is_empty(engine)
        assert psutil.Process().num_fds() <= fds

    with_engine(tiny, scenario)
