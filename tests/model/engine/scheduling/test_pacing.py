"""Budgets that follow from what steps cost."""

from __future__ import annotations

import pytest

from model.engine.scheduling.pacing import (
    CPU_PAUSES,
    GPU_PAUSES,
    SMALLEST_CHUNK,
    Pacing,
    Pauses,
)

FIXED, PER_TOKEN = 0.01, 0.0005  # seconds


STEPS = [(1, 0), (0, 100), (8, 0), (4, 60)]  # decoding rows and prefill tokens


def teach(pacing: Pacing, steps: list[tuple[int, int]], factor: float = 1.0) -> None:
    for decoding, prefill in steps:
        pacing.measured(factor * (FIXED + PER_TOKEN * (decoding + prefill)), decoding, prefill)


def learned(pacing: Pacing | None = None) -> Pacing:
    pacing = pacing or Pacing(512)
    pacing.measured(30.0, 1, 0)  # the first step, which reads weights from the disk
    teach(pacing, 10 * STEPS)
    return pacing


def test_nobody_is_stalled_or_nothing_is_known() -> None:
    assert Pacing(512).prefill_budget(4, 1) == 512
    assert learned().prefill_budget(0, 3) == 512
    assert learned(Pacing(300, fixed=True)).prefill_budget(4, 1) == 300


@pytest.mark.parametrize("decoding", [4, 8, 16])
def test_a_step_is_stretched_by_no_more_than_it_may(decoding: int) -> None:
    budget = learned().prefill_budget(decoding, 1)
    plain = FIXED + PER_TOKEN * decoding
    stretched = plain + PER_TOKEN * budget
    most = plain * max(CPU_PAUSES.stretch, 1 + 4 / decoding)
    assert most - PER_TOKEN * SMALLEST_CHUNK <= stretched <= most * 1.05


def test_many_prompts_weigh_more_than_few_streams() -> None:
    budgets = [learned().prefill_budget(2, waiting) for waiting in (1, 2, 4, 8)]
    assert budgets == sorted(budgets)
    assert budgets[0] < budgets[-1]
    assert learned().prefill_budget(100_000, 1) >= SMALLEST_CHUNK


def test_prompts_that_come_without_end_do_not_wear_the_estimate_out() -> None:
    """No step decodes alone for long: what one would cost is still known."""
    pacing = learned()
    before = pacing.prefill_budget(12, 1)
    teach(pacing, 500 * [(12, before)])
    assert abs(pacing.prefill_budget(12, 1) - before) <= SMALLEST_CHUNK


@pytest.mark.parametrize("factor", [10, 0.1])
def test_it_forgets(factor: float) -> None:
    """The machine has become ten times slower, or faster."""
    pacing = learned()
    before = pacing.spare_seconds(8, 1)
    assert before is not None
    teach(pacing, 12 * STEPS, factor)
    assert pacing.spare_seconds(8, 1) == pytest.approx(factor * before, rel=0.2)


LAUNCHING = 0.016  # seconds that a GPU's host takes to launch any step with prefill
GPU_TOKEN = 0.00002
GPU_DECODE = 0.006


def on_gpu(pacing: Pacing, prefill: int, guessed: int = 0) -> float:
    """Teach a step beside 4 streams; returns its seconds."""
    seconds = GPU_DECODE
    if prefill:
        seconds = max(GPU_DECODE, LAUNCHING) + GPU_TOKEN * prefill
    elif guessed:
        seconds = GPU_DECODE + 0.001
    pacing.measured(seconds, 4, prefill, guessed)
    return seconds


def warm_gpu() -> Pacing:
    pacing = Pacing(8192, pauses=GPU_PAUSES)
    for _ in range(3):
        on_gpu(pacing, 0)
    return pacing


@pytest.mark.parametrize("pauses", [GPU_PAUSES, CPU_PAUSES], ids=["GPU", "CPU"])
def test_a_fixed_cost_beyond_the_spare_time_does_not_make_chunks_collapse(pauses: Pauses) -> None:
    """No chunk fits two steps of 6 ms; then one that is worth its launches is best."""
    pacing = Pacing(8192, pauses=pauses)
    for _ in range(3):
        on_gpu(pacing, 0)
    on_gpu(pacing, 60)
    chunks = []
    for _ in range(50):
        chunks.append(pacing.prefill_budget(4, 1))
        on_gpu(pacing, chunks[-1])
    assert GPU_TOKEN * min(chunks[10:]) >= (LAUNCHING - GPU_DECODE) / 2


def test_a_gpu_stays_below_50_ms_or_three_steps() -> None:
    pacing = warm_gpu()
    assert pacing.prefill_budget(4, 1) == GPU_PAUSES.first_chunk
    taken = [on_gpu(pacing, pacing.prefill_budget(4, 1)) for _ in range(20)]
    assert max(taken) <= 0.05
    assert taken[-1] >= 0.04
    for _ in range(20):
        pacing.measured(0.1, 4, 0)
    spare = pacing.spare_seconds(4, 1)
    assert spare is not None
    assert 0.15 < spare <= 0.2


def test_many_prompts_beside_one_stream_take_longer_steps_on_a_gpu_too() -> None:
    spare = [warm_gpu().spare_seconds(4, waiting) for waiting in (1, 4, 8, 16)]
    assert spare[0] is not None
    assert spare == [spare[0], spare[0], 2 * spare[0], 4 * spare[0]]


def test_a_larger_chunk_is_not_taken_to_be_free_because_a_small_one_was() -> None:
    """Up to 300 tokens the weights take longer to read than the tokens to compute."""
    pacing, chunks = Pacing(8192, pauses=GPU_PAUSES), []
    for _ in range(3):
        pacing.measured(0.03, 4, 0)
    for _ in range(12):
        chunks.append(pacing.prefill_budget(4, 1))
        seconds = max(0.03, 0.0001 * chunks[-1])
        assert seconds <= 0.09
        pacing.measured(seconds, 4, chunks[-1])
    assert chunks[-1] > 2 * chunks[0]


def test_guesses_and_prefill_do_not_change_each_others_budgets() -> None:
    pacing = warm_gpu()
    for _ in range(10):
        on_gpu(pacing, pacing.prefill_budget(4, 1))
    prefill, spare = pacing.prefill_budget(4, 1), pacing.spare_tokens(4)
    for _ in range(10):
        on_gpu(pacing, 0, guessed=16)
    assert pacing.prefill_budget(4, 1) == prefill
    guesses = pacing.spare_tokens(4)
    assert guesses == int(GPU_DECODE / (0.001 / 16)) != spare
    for _ in range(10):
        on_gpu(pacing, 1024)
    assert pacing.spare_tokens(4) == guesses


def test_tokens_guessed_in_a_step_with_prefill_count_as_its_tokens() -> None:
    with_guesses, without = learned(), learned()
    for _ in range(20):
        with_guesses.measured(FIXED + PER_TOKEN * (4 + 96), 4, 64, 32)
        without.measured(FIXED + PER_TOKEN * (4 + 96), 4, 96)
    assert with_guesses.prefill_budget(4, 1) == without.prefill_budget(4, 1)
