"""Budgets that follow from what steps cost."""

from __future__ import annotations

import pytest

from model.engine.pacing import SMALLEST_CHUNK, STRETCH, Pacing

FIXED, PER_TOKEN = 0.01, 0.0005  # seconds


def learned(steps: list[int], pacing: Pacing | None = None) -> Pacing:
    pacing = pacing or Pacing(512)
    pacing.measured(1, 30.0)  # the first step, which reads weights from the disk
    for tokens in steps:
        pacing.measured(tokens, FIXED + PER_TOKEN * tokens)
    return pacing


def test_nobody_is_stalled_or_nothing_is_known() -> None:
    assert Pacing(512).prefill_budget(4, 1) == 512
    assert learned([1, 100, 8]).prefill_budget(0, 3) == 512
    assert learned([1, 100], Pacing(300, fixed=True)).prefill_budget(4, 1) == 300


@pytest.mark.parametrize("decoding", [4, 8, 16])
def test_a_step_is_stretched_by_no_more_than_it_may(decoding: int) -> None:
    pacing = learned([1, 100, 8, 4, 60] * 10)
    budget = pacing.prefill_budget(decoding, 1)
    plain = FIXED + PER_TOKEN * decoding
    stretched = plain + PER_TOKEN * budget
    most = max(STRETCH, 1 + 4 / decoding)
    assert plain * most - PER_TOKEN * SMALLEST_CHUNK <= stretched <= plain * most * 1.01


def test_many_prompts_weigh_more_than_few_streams() -> None:
    pacing = learned([1, 100, 8, 4, 60] * 10)
    budgets = [pacing.prefill_budget(2, waiting) for waiting in (1, 2, 4, 8)]
    assert budgets == sorted(budgets)
    assert budgets[0] < budgets[-1]
    assert learned([1, 1, 1]).prefill_budget(1000, 1) >= SMALLEST_CHUNK


def test_it_forgets() -> None:
    """The machine has become ten times slower, or faster."""
    for factor in (10, 0.1):
        pacing = learned([1, 100, 8, 4, 60] * 10)
        before = pacing.spare_seconds(4, 1)
        for tokens in (4, 60, 8, 100) * 12:
            pacing.measured(tokens, factor * (FIXED + PER_TOKEN * tokens))
        assert before is not None
        assert pacing.spare_seconds(4, 1) == pytest.approx(factor * before, rel=0.2)
