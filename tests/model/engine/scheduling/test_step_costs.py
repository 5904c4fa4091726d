"""Estimates that tell a step's fixed cost from the cost per token."""

from __future__ import annotations

import random

import pytest

from model.engine.scheduling.step_costs import DecodeCost, PrefillCost

BASE, FIXED, PER_TOKEN = 0.005, 0.01, 0.00002  # seconds


def learn(cost: PrefillCost, sizes: list[int], fixed: float = FIXED, noise: float = 0.0) -> None:
    generator = random.Random(0)
    for tokens in sizes:
        seconds = BASE + fixed + PER_TOKEN * tokens
        cost.measured(tokens, BASE, seconds * (1 + generator.uniform(-noise, noise)))


@pytest.mark.parametrize("sizes", [[100, 1000], [64, 200, 700, 2000], [300, 100, 500]])
def test_two_sizes_tell_the_fixed_part_from_the_tokens(sizes: list[int]) -> None:
    cost = PrefillCost()
    learn(cost, 10 * sizes)
    assert cost.fixed == pytest.approx(FIXED, rel=0.2)
    assert cost.per_token == pytest.approx(PER_TOKEN, rel=0.35)


def test_noise_moves_the_line_only_a_little() -> None:
    cost = PrefillCost()
    learn(cost, 20 * [64, 200, 700, 2000], noise=0.05)
    for tokens in (700, 2000):
        within = cost.tokens_within(FIXED + PER_TOKEN * tokens)
        assert within is not None
        seconds = FIXED + PER_TOKEN * within
        assert seconds == pytest.approx(FIXED + PER_TOKEN * tokens, rel=0.15)


def test_one_size_is_taken_to_cost_in_proportion() -> None:
    cost = PrefillCost()
    assert cost.tokens_within(1.0) is None
    learn(cost, 10 * [500])
    assert cost.fixed == pytest.approx(0.0, abs=1e-9)
    assert cost.tokens_within(FIXED + PER_TOKEN * 500) == pytest.approx(500)


def test_the_fixed_part_is_never_negative_and_a_token_never_free() -> None:
    """Small chunks are free while the weights are read; later the machine becomes faster."""
    cost = PrefillCost()
    for tokens, seconds in 10 * [(128, 0.03), (256, 0.031), (1024, 0.11)]:
        cost.measured(tokens, 0.03, seconds)
        assert cost.fixed >= 0
    for tokens, seconds in [(128, 0.03), (1024, 0.01), (2048, 0.001)]:
        cost.measured(tokens, 0.0, seconds)
        assert cost.per_token is not None
        assert cost.per_token > 0
        assert cost.fixed >= 0


@pytest.mark.parametrize("slow", [60, 512, 4096])
def test_one_slow_step_is_forgotten(slow: int) -> None:
    """Such as a first one, in which kernels are loaded, even if no chunk of its size comes again."""
    cost = PrefillCost()
    cost.measured(slow, BASE, 1.0)
    learn(cost, 30 * [256, 1024])
    seconds = FIXED + PER_TOKEN * 1024
    within = cost.tokens_within(seconds)
    assert within is not None
    assert FIXED + PER_TOKEN * within == pytest.approx(seconds, rel=0.25)


def test_beyond_the_largest_size_the_whole_step_is_taken_to_grow() -> None:
    cost = PrefillCost()
    for _ in range(5):
        cost.measured(256, 0.03, 0.035)
    assert cost.safe_tokens(0.04) == pytest.approx(512)
    assert cost.safe_tokens(0.0) == 256  # known, so nothing to be careful about


def test_decoding_is_estimated_from_the_nearest_number_of_rows() -> None:
    cost = DecodeCost()
    assert cost.seconds(3, 0.0) is None
    cost.measured(4, 0.010)
    cost.measured(16, 0.016)
    assert cost.seconds(5, 0.0005) == pytest.approx(0.0105)
    assert cost.seconds(14, 0.0005) == pytest.approx(0.015)
    assert cost.seconds(0, 1.0) == pytest.approx(0.005)  # never below half of what is known
