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
    GrammarSpec,
    LoadOptions,
    Message,
    MessageImage,
    ModelError,
    SamplingParams,
    load_engine,
)
from model.engine.async_engine import AsyncEngine
from model.engine.execution import step_runner
from model.engine.sampling.token_masks import TokenMasks
from model.engine.scheduling.scheduler import Chunk
from model.engine.scheduling.sequence import Sequence
from model.errors import StepFailedError
from tests.support.waiting import until

SECRET = "/secret/path/of/the/server"  # what no client may read
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
VICTIM = replace(GREEDY, max_tokens=21)  # known by its identity
GUIDED = replace(GREEDY, grammar=GrammarSpec("regex", "[a-z]{40}"), ignore_eos=False)
GUIDED_VICTIM = replace(GUIDED, max_tokens=21)
Scenario = Callable[[AsyncEngine], Awaitable[None]]
Inject = Callable[[pytest.MonkeyPatch, AsyncEngine], None]


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


def is_victim(sequence: Sequence) -> bool:
    return sequence.params is VICTIM or sequence.params is GUIDED_VICTIM


def fails(chunk: Chunk, when: Callable[[Chunk], bool]) -> bool:
    return is_victim(chunk.sequence) and when(chunk)


def in_runner(
    when: Callable[[list[Chunk]], bool], error: BaseException | None = None
) -> Callable[[pytest.MonkeyPatch, AsyncEngine], None]:
    def inject(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
        runner = engine._engine._runner
        run = runner.run

        def faulty(chunks: list[Chunk]) -> torch.Tensor:
            if when(chunks):
                raise error or RuntimeError(SECRET)
            return run(chunks)

        patch.setattr(runner, "run", faulty)

    return inject


def after_the_decoder(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    """When keys and values have been written, but never at a sequence alone."""
    runner = engine._engine._runner
    run = runner.run

    def faulty(chunks: list[Chunk]) -> torch.Tensor:
        logits_SV = run(chunks)
        if len(chunks) > 1:
            raise RuntimeError(SECRET)
        return logits_SV

    patch.setattr(runner, "run", faulty)


def in_sampler(patch: pytest.MonkeyPatch, _: AsyncEngine) -> None:
    sample = step_runner.sample

    def faulty(logits_SV: torch.Tensor, sequences: list[Sequence], *more: Any) -> Any:
        if any(map(is_victim, sequences)):
            raise RuntimeError(SECRET)
        return sample(logits_SV, sequences, *more)

    patch.setattr(step_runner, "sample", faulty)


def in_token_masks(patch: pytest.MonkeyPatch, _: AsyncEngine) -> None:
    fill = TokenMasks._fill

    def faulty(self: TokenMasks, sequences: list[Sequence]) -> torch.Tensor:
        if any(map(is_victim, sequences)):
            raise RuntimeError(SECRET)
        return fill(self, sequences)

    patch.setattr(TokenMasks, "_fill", faulty)


def in_detokenizer(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    make = engine._engine._make_sequences._detokenizer

    def faulty(params: SamplingParams) -> Any:
        detokenizer = make(params)
        if params is VICTIM:

            def add(_: int) -> Any:
                raise RuntimeError(SECRET)

            patch.setattr(detokenizer, "add", add)
        return detokenizer

    patch.setattr(engine._engine._make_sequences, "_detokenizer", faulty)


def in_queueing(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    make = engine._engine._make_sequences._detokenizer

    def faulty(params: SamplingParams) -> Any:
        if params is VICTIM:
            raise RuntimeError(SECRET)
        return make(params)

    patch.setattr(engine._engine._make_sequences, "_detokenizer", faulty)


def in_tower(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    tower = engine._engine.vision._tower
    in_parts = tower.in_parts

    def faulty(pixels: list[torch.Tensor], grids: list[tuple[int, int]]) -> Iterator[None]:
        if any(float(p.mean()) < -1 for p in pixels):  # black ones
            raise torch.OutOfMemoryError(SECRET)
        return (yield from in_parts(pixels, grids))

    patch.setattr(tower, "in_parts", faulty)


OUT_OF_MEMORY = torch.OutOfMemoryError(f"CUDA out of memory. {SECRET}")
FAULTS: dict[str, Inject] = {
    "prefill": in_runner(lambda cs: any(fails(c, lambda c: not c.sequence.num_output) for c in cs)),
    "decode": in_runner(lambda cs: any(fails(c, lambda c: c.sequence.num_output > 0) for c in cs)),
    "memory": in_runner(lambda cs: any(map(is_victim, (c.sequence for c in cs))), OUT_OF_MEMORY),
    "sampler": in_sampler,
    "detokenizer": in_detokenizer,
    "queueing": in_queueing,
}
PASSING: dict[str, Inject] = {  # no sequence is at fault
    "memory for several": in_runner(lambda cs: len(cs) > 1, OUT_OF_MEMORY),
    "after the decoder": after_the_decoder,
}


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
    inner = engine._engine
    await until(lambda: not inner.has_work)
    assert inner.blocks.num_free == inner.blocks.num_blocks
    assert (engine._in_flight.sequences, engine._generations, inner._sequences) == (0, {}, {})


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
    with nothing_is_left(engine):
        for _ in range(2):
            with pytest.MonkeyPatch.context() as patch:
                inject(patch, engine)
                outcome, *together = await asyncio.gather(
                    text(engine, *victim), *(text(engine, *other) for other in others)
                )
            assert together == alone
            await is_empty(engine)
    assert isinstance(await text(engine, *victim), str)
    return outcome


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
            inject(patch, engine)
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
        await until(lambda: engine.stats().running == 3)
        with pytest.MonkeyPatch.context() as patch:
            in_runner(lambda _: True, error)(patch, engine)
            ended = await asyncio.wait_for(waiting, 10)
        assert all(isinstance(answer, EngineDeadError) for answer in ended)
        assert not [answer for answer in ended if SECRET in str(answer)]
        assert not engine.is_alive
        with pytest.raises(EngineDeadError):
            await engine.generate(question(9), GREEDY)
        assert engine._in_flight.sequences == 0

    with_engine(tiny, scenario)


def test_faults_while_others_come_and_go(tiny: Path) -> None:
    """A hundred faults in a row leave threads, files and blocks as they were."""

    async def scenario(engine: AsyncEngine) -> None:
        alone = await text(engine, question(1), GREEDY)
        fds = psutil.Process().num_fds()
        with pytest.MonkeyPatch.context() as patch:
            FAULTS["decode"](patch, engine)
            for _ in range(100):
                assert isinstance(await text(engine, question(9), VICTIM), StepFailedError)
            assert await text(engine, question(1), GREEDY) == alone
        await is_empty(engine)
        assert psutil.Process().num_fds() <= fds

    with_engine(tiny, scenario)
