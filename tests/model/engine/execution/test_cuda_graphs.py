"""Decoding by graphs: what they touch, and how many there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.engine.config import EngineConfig
from model.engine.policy import Policy
from model.engine.scheduling.chunk import Chunk
from model.phi3v.modeling import Phi3VForCausalLM
from tests.support.engines.gpu_engines import Runners, decode_step, logits_of, make_engine
from tests.support.engines.gpu_stand_ins import Tape

pytestmark = pytest.mark.usefixtures("tapes")


@torch.inference_mode()
def test_unused_rows_touch_nothing(
    gpu_model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape]
) -> None:
    runners = Runners()
    engine = make_engine(gpu_model, tiny, runners.make)
    cache = runners.cache
    chunks = decode_step(engine, [33, 16, 5])  # which takes a graph of four rows
    slots = [
        (c.sequence.block_table[c.start // cache.block_size], c.start % cache.block_size)
        for c in chunks
    ]
    before = cache.blocks.clone()
    mine = {block for c in chunks for block in c.sequence.block_table}
    # Nobody else's block may be read.
    cache.blocks[:, [b for b in range(cache.blocks.shape[1]) if b not in mine]] = torch.nan
    poisoned = cache.blocks.clone()
    found = runners.fast.run(chunks)
    assert tapes[-1].played[-1] == 4
    changed = (cache.blocks != poisoned) & ~(cache.blocks.isnan() & poisoned.isnan())
    assert sorted(map(tuple, changed.any(dim=(0, 2, 3, 5)).nonzero().tolist())) == sorted(slots)
    cache.blocks.copy_(before)
    torch.testing.assert_close(found, runners.plain.run(chunks))


@torch.inference_mode()
def test_guesses_are_verified_in_graphs(
    gpu_model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape]
) -> None:
    """Several tokens of some sequences, in both regimes, as the plain path computes them."""
    runners = Runners()
    engine = make_engine(gpu_model, tiny, runners.make)
    chunks = decode_step(engine, [33, 1030, 5])
    guesses: list[tuple[int, ...]] = [(7, 8, 9), (), (310, 311)]
    for chunk, guess in zip(chunks, guesses, strict=True):
        engine.blocks.grow(chunk.sequence.block_table, len(chunk.sequence) + len(guess))
    guessing = [replace(c, guess=guess) for c, guess in zip(chunks, guesses, strict=True)]
    found = runners.fast.run(guessing)
    assert tapes[-1].played[-1] == 4 * 4
    assert len(found) == 4 + 1 + 3
    torch.testing.assert_close(found, runners.plain.run(guessing))


@torch.inference_mode()
def test_longer_chunks_and_images_go_without_a_graph(
    gpu_model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape]
) -> None:
    runners = Runners()
    engine = make_engine(gpu_model, tiny, runners.make)
    (chunk,) = decode_step(engine, [40])
    sequence = chunk.sequence
    long = Chunk(sequence, len(sequence) - 17, len(sequence))
    assert runners.fast.run([long]).shape == (1, 32064)
    assert not tapes[-1].played


@torch.inference_mode()
def test_logits_outlive_the_next_replay(gpu_model: Phi3VForCausalLM, tiny: Path) -> None:
    runners = Runners()
    chunks = decode_step(make_engine(gpu_model, tiny, runners.make), [20, 9])
    first = runners.fast.run(chunks)
    kept = first.clone()
    assert not torch.equal(runners.fast.run(chunks[::-1]), kept)
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    ("largest", "rows"),
    [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8]), (30, [1, 2, 4, 8, 16, 24, 30])],
)
def test_sizes(largest: int, rows: list[int]) -> None:
    sizes = Policy.of(EngineConfig(64, max_num_seqs=largest, num_blocks=4)).graph_sizes
    assert [number for number, tokens in sizes if tokens == 1] == rows
    verifying = {size for size in sizes if size[1] > 1}
    assert verifying >= {(1, 4), (1, 8), (1, 16)}
    assert max(number * tokens for number, tokens in verifying) <= 256


def test_deterministic_steps_have_one_shape(
    gpu_model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape]
) -> None:
    """To the last bit of float16, alone and in company."""
    half = Phi3VForCausalLM(gpu_model.config).eval()
    half.load_state_dict(gpu_model.state_dict())
    half.to(torch.float16)
    alone = logits_of(make_engine(half, tiny, deterministic=True), [30], 0)
    company = logits_of(make_engine(half, tiny, deterministic=True), [7, 30, 150, 2], 1)
    assert alone.shape == (12, 32064)
    assert torch.equal(alone, company)
    assert tapes[-1].captured == [6]
    assert set(tapes[-1].played) == {6}
