"""The GPU's sampler draws the tokens that the CPU's draws, from the same seeds."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from model.engine.request import SamplingParams
from model.engine.sampling.sampler import sample
from model.gpu.sample import sample_rows
from model.gpu.support import LARGEST_VOCABULARY

OFFICIAL, ODD = 32064, 32011


def draw(logits: Tensor, rows: list[SamplingParams], position: int = 0) -> list[int]:
    """Tokens of the GPU's sampler; every row has its own seed."""
    wrapped = [((row.seed or 0) + 2**63) % 2**64 - 2**63 for row in rows]
    min_p = [float(row.min_p) for row in rows]
    out = torch.full((len(rows),), -1)
    sample_rows(
        logits,
        torch.tensor([float(row.temperature) for row in rows]),
        torch.tensor([row.top_k for row in rows], dtype=torch.int32),
        torch.tensor([float(row.top_p) for row in rows]),
        torch.tensor(wrapped),
        torch.full((len(rows),), position),
        out,
        min_p_R=torch.tensor(min_p) if any(min_p) else None,
    )
    return out.tolist()


def drawn_on_cpu(logits: Tensor, rows: list[SamplingParams], position: int = 0) -> list[int]:
    sequences: Any = [SimpleNamespace(params=r, seed=r.seed, num_output=position) for r in rows]
    return [drawn.token_id for drawn in sample(logits, sequences)]


@pytest.mark.parametrize("vocabulary", [OFFICIAL, ODD])
def test_official_vocabulary(vocabulary: int) -> None:
    torch.manual_seed(0)
    rows = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1, seed=1),
        SamplingParams(temperature=1, top_p=0.95, seed=2),
        SamplingParams(temperature=0.7, top_k=50, top_p=0.9, seed=3),
        SamplingParams(temperature=1.3, min_p=0.02, seed=4),
    ]
    logits = torch.randn(len(rows), vocabulary) * 3
    assert draw(logits, rows, 17) == drawn_on_cpu(logits, rows, 17)


@pytest.mark.parametrize(("vocabulary", "stride"), [(300, 5), (7, 11), (2048, 13)])
def test_combinations_of_cuts(vocabulary: int, stride: int) -> None:
    torch.manual_seed(vocabulary)
    cuts = itertools.product([0.3, 1, 2], [0, 1, 5, vocabulary], [0.0, 0.4, 1], [0.0, 0.1, 1])
    rows = [
        SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m, seed=seed)
        for seed, (t, k, p, m) in enumerate(itertools.islice(cuts, 1, None, stride))
    ]
    logits = torch.randn(len(rows), vocabulary) * 2
    assert draw(logits, rows) == drawn_on_cpu(logits, rows)


def test_seeds_of_any_size() -> None:
    torch.manual_seed(1)
    seeds = [0, -1, 2**63 - 1, -(2**63), 2**63 + 5]
    rows = [SamplingParams(temperature=1, seed=seed) for seed in seeds]
    logits = torch.randn(1, 500).expand(len(rows), -1).contiguous()
    for position in (0, 131071):
        assert draw(logits, rows, position) == drawn_on_cpu(logits, rows, position)


def test_a_row_does_not_depend_on_others() -> None:
    torch.manual_seed(2)
    rows = [SamplingParams(temperature=1, top_p=0.9, seed=seed) for seed in range(3)]
    logits = torch.randn(3, 400)
    together = draw(logits, rows)
    assert [draw(logits[i : i + 1], rows[i : i + 1])[0] for i in range(3)] == together


def test_the_lowest_of_equal_logits_is_taken() -> None:
    logits = torch.zeros(2, 400)
    logits[0, [399, 17, 200]] = 5
    assert draw(logits, [SamplingParams(temperature=0)] * 2) == [17, 0]


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.0074}])
def test_no_more_of_equal_logits_than_asked(cut: dict[str, Any]) -> None:
    """Three of 400 equal tokens: the lowest, where the CPU leaves the choice to torch."""
    rows = [SamplingParams(temperature=1, seed=seed, **cut) for seed in range(12)]
    logits = torch.zeros(1, 400).expand(12, -1).contiguous()
    assert set(draw(logits, rows)) == {0, 1, 2}


def test_forbidden_tokens_are_not_drawn() -> None:
    logits = torch.full((9, 400), -torch.inf)
    logits[:, [3, 250]] = torch.tensor([0.0, 1.0])
    cuts: list[dict[str, Any]] = [{}, {"top_k": 10}, {"top_p": 0.99}]
    rows = [SamplingParams(temperature=1, seed=n, **cut) for n, cut in enumerate(cuts * 3)]
    assert set(draw(logits, rows)) == {3, 250}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from numpy
def test_broken_logits_give_tokens_that_exist() -> None:
    logits = torch.zeros(8, 300)
    logits[:4] = torch.nan
    logits[4:] = -torch.inf
    greedy, plain = SamplingParams(temperature=0), SamplingParams(temperature=1, seed=1)
    cut, least = SamplingParams(temperature=1, top_p=0.5), SamplingParams(temperature=1, min_p=0.1)
    tokens = draw(logits, [greedy, plain, cut, least] * 2)
    assert all(0 <= token < 300 for token in tokens)


def test_a_larger_vocabulary_is_refused() -> None:
    logits = torch.zeros(1, LARGEST_VOCABULARY + 1)
    with pytest.raises(ValueError, match="32769 tokens; the GPU's sampler supports 32768"):
        draw(logits, [SamplingParams()])
