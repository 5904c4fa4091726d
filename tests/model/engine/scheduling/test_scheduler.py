"""Which steps guess, and how much."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from model.engine.engine import Engine
from model.engine.policy import Policy
from model.engine.request import SamplingParams
from model.engine.scheduling.block_manager import BlockManager
from model.engine.scheduling.chunk import Chunk
from model.engine.scheduling.pacing import Pacing
from model.engine.scheduling.scheduler import Scheduler
from model.engine.scheduling.sequence_factory import SequenceFactory
from model.phi3v.inputs.processing import PromptInputs
from model.phi3v.rope import LongRope
from tests.support.engines.engine_runs import MakeEngine

ROWS = 4
REPEATING = [1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 5, 6, 7]


class Steps:
    """Steps of a scheduler whose sequences repeat their prompt."""

    def __init__(self, engine: Engine, guess_limit: Callable[[int], int | None]) -> None:
        config, policy = engine.config, Policy.of(engine.config)
        blocks = BlockManager(config.num_blocks, config.block_size)
        rope = LongRope(engine.network.config)
        self._scheduler = Scheduler(
            config, policy, blocks, rope, Pacing(64), lambda source, target: None, guess_limit
        )
        self._make = SequenceFactory(engine.processor.tokenizer, frozenset(), config, policy)
        for number in range(ROWS):
            self.add(number, REPEATING)

    def add(self, number: int, token_ids: list[int]) -> None:
        for sequence in self._make(
            number, PromptInputs(token_ids), SamplingParams(), 0.0, None, ""
        ):
            self._scheduler.add(sequence)

    def __call__(self) -> list[Chunk]:
        """Run a step; guesses are not verified."""
        chunks = self._scheduler.schedule()
        for chunk in chunks:
            self._scheduler.computed(chunk.sequence, chunk.end)
            if chunk.num_sampled:
                chunk.sequence.append(REPEATING[1 + (3 + chunk.sequence.num_output) % 9])
        return chunks


@pytest.mark.parametrize(
    ("most", "guessed"), [(None, [2, 2, 2, 2]), (0, [0] * 4), (1, [1] * 4), (15, [2] * 4)]
)
def test_no_sequence_guesses_more_tokens_than_are_allowed(
    make_engine: MakeEngine, most: int | None, guessed: list[int]
) -> None:
    asked = []

    def guess_limit(rows: int) -> int | None:
        asked.append(rows)
        return most

    steps = Steps(make_engine(), guess_limit)
    assert len(steps()) == ROWS  # the prompts
    assert [len(chunk.guess) for chunk in steps()] == guessed
    assert asked == [ROWS]


@pytest.mark.parametrize(("most", "guesses"), [(None, True), (100, False)])
def test_steps_with_prefill_guess_only_where_all_steps_may(
    make_engine: MakeEngine, most: int | None, guesses: bool
) -> None:
    steps = Steps(make_engine(), lambda rows: most)
    steps()
    steps.add(ROWS, list(range(100, 300)))
    *decoding, prefill = steps()
    assert len(prefill) == 64
    assert len(decoding) == ROWS
    assert all(bool(chunk.guess) is guesses for chunk in decoding)
