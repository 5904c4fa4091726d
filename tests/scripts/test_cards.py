"""Predicted times follow from launches, bytes and operations."""

from __future__ import annotations

import math

import pytest

from scripts.benchmarks.harness.cards import CARDS, Card, predict, roof
from scripts.benchmarks.harness.simulated_engine import COSTS
from tests.support.engines.official_sizes import FULL, HEADERS

CARD = Card("round", 1e9, 1e9, 1e12, 0.5, 0.25, eager_launch=1e-5, graph_launch=1e-6)


@pytest.mark.parametrize(
    ("launches", "num_bytes", "flops", "graph", "seconds"),
    [
        (0, 1e6, 0, True, 0.002),  # half the bandwidth
        (0, 1e6, 1e9, True, 0.004),  # a quarter of the operations
        (1000, 1e6, 0, True, 0.003),
        (1000, 1e6, 0, False, 0.010),  # the host is slower than the card
        (1000, 1e7, 0, False, 0.021),
    ],
)
def test_the_slowest_part_decides(
    launches: int, num_bytes: float, flops: float, graph: bool, seconds: float
) -> None:
    assert predict(CARD, launches, num_bytes, flops, graph) == pytest.approx(seconds)


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_no_prediction_beats_the_data_sheet(card: Card) -> None:
    for num_bytes, flops in [(1e10, 0.0), (0.0, 1e14), (1e10, 1e14)]:
        assert predict(card, 300, num_bytes, flops, graph=True) > roof(card, num_bytes, flops)


def test_the_model_reads_its_decoder_once() -> None:
    """By the official checkpoint's tensors; norms and the embedding table are not products."""
    names = [
        name for name in HEADERS if name.endswith("proj.weight") and name.startswith("model.layers")
    ]
    weights = sum(math.prod(HEADERS[name].shape) for name in [*names, "lm_head.weight"])
    assert len(names) == 4 * FULL.num_hidden_layers
    assert COSTS.weight_bytes == 2 * weights
    assert COSTS.token_flops + COSTS.head_flops == 2 * weights
    assert COSTS.kv_bytes == 393_216
