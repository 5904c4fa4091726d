"""A long prompt beside streams on cards that are not here: the clock is simulated.

The scheduler, its pacing and its sequences are real; how long a step takes is predicted.
"""

from __future__ import annotations

import pytest

from scripts.benchmarks.harness.cards import CARDS
from scripts.benchmarks.suites.pacing import (
    HELD,
    KERNELS,
    MOST_TTFT,
    NAMES,
    STREAMS,
    CostPerToken,
    beside_streams,
)


@pytest.mark.parametrize("held_prompt", [HELD - 20, 60])  # the longest that pacing has seen before
@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("name", NAMES)
def test_neither_the_prompt_nor_the_streams_wait_long(
    name: str, streams: int, held_prompt: int
) -> None:
    for seed in range(2):
        outcome = beside_streams(CARDS[name], streams, held_prompt=held_prompt, seed=seed)
        assert outcome.ttft <= MOST_TTFT * outcome.alone
        assert outcome.gap <= outcome.most_gap


@pytest.mark.parametrize("streams", [4, 15])
@pytest.mark.parametrize("name", ["A100-80", "H100", "H200"])
def test_chunks_do_not_collapse_even_if_launching_takes_longest(name: str, streams: int) -> None:
    """With torch's 1,250 kernels, a step with prefill takes the host 16 ms, whatever its chunk."""
    after = beside_streams(CARDS[name], streams, launches=KERNELS)
    assert after.ttft <= MOST_TTFT * after.alone
    assert after.gap <= after.most_gap


def test_one_cost_per_token_lets_chunks_collapse() -> None:
    """The simulation shows the defect that it was made for."""
    before = beside_streams(CARDS["H100"], 4, CostPerToken, KERNELS)
    assert before.ttft > 50 * before.alone
