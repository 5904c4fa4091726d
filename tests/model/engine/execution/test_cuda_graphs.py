"""Decoding by graphs: what they touch, and how many there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.phi3v.modeling import Phi3VForCausalLM
from tests.support.engines.cuda_engines import Runners, decode_step, logits_of, make_engine
from tests.support.engines.cuda_stand_ins import Tape

pytestmark = pytest.mark.usefixtures("tapes")


@torch.inference_mode()
def test_rows_that_fill_up_touch_nothing(
    gpu_model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape]
) -> None:
    runners = Runners()
    engine = make_engine(gpu_model, tiny, runners.make)
    cache = runners.cache
    chunks = decode_step(engine, [33, 16, 5])  # which takes a graph of four rows
    everything = (cache.keys, cache.values)
    slots = [
        (c.sequence.block_table[c.start // cache.block_size], c.start % cache.block_size)
        for c in chunks
    ]
    before = [x.clone() for x in everything]
    mine = sorted({block for c in chunks for block in c.sequence.block_table})
    for x in everything:  # nobody else's block may be read, nor what scratch rows left there
        x[:, [b for b in range(x.shape[1]) if b not in mine]] = torch.nan
    poisoned = [x.clone() for x in everything]
    found = runners.fast.run(chunks)
    assert tapes[-1].played[-1] == 4
    for x, old in zip(everything, poisoned, strict=True):
        changed = ((x != old) & ~(x.isnan() & old.isnan())).any(dim=(0, 3, 4)).nonzero().tolist()
        assert sorted(map(tuple, changed)) == sorted([*slots, (cache.scratch_block, 0)])
    for x, old in zip(everything, before, strict=True):
        x.copy_(old)
    torch.testing.assert_close(found, runners.plain.run(chunks))


@torch.inference_mode()
def test_logits_outlive_the_next_replay(gpu_model: Phi3VForCausalLM, tiny: Path) -> None:
    runners = Runners()
    chunks = decode_step(make_engine(gpu_model, tiny, runners.make), [20, 9])
    first = runners.fast.run(chunks)
    kept = first.clone()
    assert not torch.equal(runners.fast.run(chunks[::-1]), kept)
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    ("largest", "rows"), [(1, {1}), (2, {1, 2}), (5, {1, 2, 4, 5}), (8, {1, 2, 4, 8})]
)
def test_numbers_of_rows(
    gpu_model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape], largest: int, rows: set[int]
) -> None:
    make_engine(gpu_model, tiny, max_num_seqs=largest)
    assert tapes[-1].captured == sorted(rows, reverse=True)


def test_deterministic_steps_have_one_shape(
    gpu_model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape]
) -> None:
    """To the last bit of bfloat16, alone and in company."""
    half = Phi3VForCausalLM(gpu_model.config).eval()
    half.load_state_dict(gpu_model.state_dict())
    half.to(torch.bfloat16)
    alone = logits_of(make_engine(half, tiny, deterministic=True), [30], 0)
    company = logits_of(make_engine(half, tiny, deterministic=True), [7, 30, 150, 2], 1)
    assert alone.shape == (12, 32064)
    assert torch.equal(alone, company)
    assert tapes[-1].captured == [6]
    assert set(tapes[-1].played) == {6}
