"""The engine behind asyncio: many readers, early leavers, overload, and an engine that dies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model import (
    EngineDeadError,
    ImageError,
    ImageFile,
    LoadOptions,
    Message,
    MessageImage,
    OverloadedError,
    RequestError,
    SamplingParams,
    load_engine,
)
from model.engine.async_engine import AsyncEngine
from model.engine.scheduling.scheduler import Scheduler
from tests.support.waiting import eventually_async

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
HELLO = [Message("user", "hello")]
Scenario = Callable[[AsyncEngine], Awaitable[None]]


def with_engine(tiny: Path, scenario: Scenario, **options: Any) -> None:
    async def run() -> None:
        load = LoadOptions(model=str(tiny), dtype="float32", max_model_len=2048, **options)
        engine, info = await load_engine(load)
        assert info.name == "phi3v-tiny"
        try:
            await scenario(engine)
        finally:
            engine.shutdown()

    asyncio.run(run())


async def text(engine: AsyncEngine, messages: list[Message], params: SamplingParams) -> str:
    generation = await engine.generate(messages, params)
    try:
        return "".join([delta.text async for delta in generation])
    finally:
        generation.close()


def test_many_at_once(tiny: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        questions = [[Message("user", f"number {i}")] for i in range(30)]
        together = await asyncio.gather(*(text(engine, q, GREEDY) for q in questions))
        alone = [await text(engine, q, GREEDY) for q in questions]
        assert together == alone

    with_engine(tiny, scenario, max_num_seqs=8)


def test_closing_frees_everything(tiny: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        long = SamplingParams(max_tokens=2000, ignore_eos=True, n=3)
        generation = await engine.generate(HELLO, long)
        await anext(generation)
        held = engine.describe()
        assert (held.requests, held.in_flight) == (1, 3)
        assert held.in_flight_tokens > 0
        assert held.blocks_used > 0
        generation.close()
        generation.close()  # again: nothing happens
        await eventually_async(lambda: engine.describe().is_idle)

    with_engine(tiny, scenario)


def test_overload_and_recovery(tiny: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        long = SamplingParams(max_tokens=2000, ignore_eos=True)
        running = [await engine.generate(HELLO, long) for _ in range(3)]
        with pytest.raises(OverloadedError, match="the limit is 3"):
            await engine.generate(HELLO, GREEDY)
        with pytest.raises(RequestError, match="at most 3"):  # no use in trying again
            await engine.generate(HELLO, SamplingParams(n=4))
        running[1].close()
        assert await text(engine, HELLO, GREEDY)
        for generation in running:
            generation.close()

    with_engine(tiny, scenario, max_num_seqs=2, max_waiting=1)


def test_refused_requests_leave_nothing_behind(tiny: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        sliver = MessageImage(lambda: Image.new("L", (1, 30000)))
        with pytest.raises(ImageError):
            await engine.generate([Message("user", "x", (sliver,))], GREEDY)
        assert engine.describe().is_idle

    with_engine(tiny, scenario)


def test_a_follow_up_question_decodes_nothing(tiny: Path) -> None:
    """Its image is found by the file; other callers' images, by cache salt, are not."""
    decoded: list[bytes] = []

    def decode(data: bytes) -> Image.Image:
        decoded.append(data)
        return Image.new("RGB", (300, 200), "red")

    picture = MessageImage(lambda: ImageFile(b"a file", decode, lambda _: None), 1)
    question = [Message("user", "x", (picture,))]

    async def scenario(engine: AsyncEngine) -> None:
        answer = await text(engine, question, GREEDY)
        assert await text(engine, question, GREEDY) == answer
        assert len(decoded) == 1
        assert engine.stats().embedding_hits == 1
        follow_up = [*question, Message("assistant", answer), Message("user", "and y?")]
        await text(engine, follow_up, GREEDY)
        assert len(decoded) == 1
        assert await text(engine, question, replace(GREEDY, cache_salt="another")) == answer
        assert len(decoded) == 2

    with_engine(tiny, scenario)


def test_cancelled_preparation_leaves_nothing_behind(tiny: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        begun, cancelled = threading.Event(), threading.Event()

        def slow() -> Image.Image:
            begun.set()
            assert cancelled.wait(60)
            return Image.new("L", (10, 10))

        message = Message("user", "x", (MessageImage(slow),))
        task = asyncio.create_task(engine.generate([message], GREEDY))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()
        assert engine.describe().is_idle
        assert await text(engine, HELLO, GREEDY)

    with_engine(tiny, scenario)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_says_so(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        generation = await engine.generate(HELLO, SamplingParams(max_tokens=2000, ignore_eos=True))
        await anext(generation)
        assert engine.is_alive
        monkeypatch.setattr(Scheduler, "schedule", lambda self: 1 / 0)
        with pytest.raises(EngineDeadError, match="restart the server") as dead:
            async for _ in generation:
                pass
        assert "division" not in str(dead.value)  # what failed is for the log
        assert not engine.is_alive
        with pytest.raises(EngineDeadError):
            await engine.generate(HELLO, GREEDY)

    with_engine(tiny, scenario)
