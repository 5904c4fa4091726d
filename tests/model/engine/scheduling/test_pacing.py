"""Budgets that follow from what steps cost."""

from __future__ import annotations

import pytest

from model.engine.scheduling.pacing import CPU_PAUSES, SMALLEST_CHUNK, Pacing

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
