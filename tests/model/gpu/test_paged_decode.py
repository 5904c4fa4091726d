"""Paged attention, compared with torch's, beside memory that is not a number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from model.gpu import paged_decode as module
from model.gpu.paged_decode import DecodeScratch, paged_decode, scratch_shapes, split_count
from scripts.gpu_checking.references import PagedSequences, paged_sequences, poisoned
from tests.support.closeness import assert_close

EDGES = [1, 2, 15, 16, 17, 255, 256, 257]


def scratch_for(given: PagedSequences, split: int = 256) -> DecodeScratch:
    """Scratch memory as an earlier step might have left it."""
    heads, dim = given.q_THD.shape[1:]
    sequences, width = given.table_SW.shape
    scratch = DecodeScratch.allocate(sequences, given.max_query, heads, dim, width, "cpu", split)
    for tensor in (scratch.output, scratch.largest, scratch.total):
        tensor.fill_(torch.nan)
    return scratch


def attend(given: PagedSequences, scratch: DecodeScratch | None = None, split: int = 256) -> Tensor:
    scratch = scratch or scratch_for(given, split)
    out = poisoned(*given.q_THD.shape, dtype=given.q_THD.dtype)
    one_each = given.max_query == 1
    paged_decode(
        given.q_THD,
        given.cache_layer,
        given.table_SW,
        given.length_S,
        None if one_each else given.query_start_S1,
        given.max_query,
        scratch,
        out,
        split,
    )
    assert not scratch.finished.any()
    return out


@pytest.fixture
def gpu_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tile that GPUs use; the interpreter's own is larger, because it is faster."""
    monkeypatch.setattr(module, "TILE", 32)


@pytest.mark.parametrize(("length", "dtype"), [(257, torch.float32), (35, torch.float16)])
def test_official_shape(length: int, dtype: torch.dtype) -> None:
    given = paged_sequences([length], [1], 32, 32, 96, dtype)
    assert_close(attend(given), given.expected_THD)


@pytest.mark.usefixtures("gpu_tile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_border(dtype: torch.dtype) -> None:
    given = paged_sequences([*EDGES, 1000], [1] * 9, 2, 1, 96, dtype)
    assert_close(attend(given), given.expected_THD)


@pytest.mark.usefixtures("gpu_tile")
@pytest.mark.parametrize(
    ("heads", "groups", "dim"),
    [(2, 2, 64), (6, 3, 80), (4, 1, 128), (8, 1, 16), (1, 1, 256), (3, 1, 24), (4, 2, 112)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_shapes(heads: int, groups: int, dim: int, dtype: torch.dtype) -> None:
    given = paged_sequences([40, 261], [1, 3], heads, groups, dim, dtype)
    assert_close(attend(given), given.expected_THD)


def test_one_to_sixteen_tokens_each() -> None:
    queries = range(1, 17)
    given = paged_sequences([16 + 17 * n for n in queries], list(queries), 2, 2, 96)
    assert_close(attend(given), given.expected_THD)


def test_tokens_in_a_split_of_their_own() -> None:
    """Some tokens see nothing of the last split, or are the whole sequence."""
    given = paged_sequences([260, 16, 5, 513], [16, 16, 5, 9], 2, 1, 96)
    assert_close(attend(given), given.expected_THD)


def test_more_query_rows_than_a_tile() -> None:
    given = paged_sequences([300, 31], [16, 11], 8, 1, 32)
    assert_close(attend(given), given.expected_THD)


def test_long_sequences_have_longer_splits() -> None:
    assert [split_count(length, 32) for length in (0, 1, 1024, 1025, 2048, 2049)] == (
        [0, 1, 32, 17, 32, 17]
    )
    given = paged_sequences([1025, 700], [1, 2], 1, 1, 16)
    assert_close(attend(given, split=32), given.expected_THD)


@pytest.mark.usefixtures("gpu_tile")
@pytest.mark.parametrize("programs", [2, 5])
def test_bits_depend_on_the_sequence_alone(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on its neighbours, the table's width, or who computes and merges the splits."""
    given = paged_sequences([600, 17, 1000, 256], [2, 1, 4, 1], 2, 1, 96)
    one_program = attend(given)
    monkeypatch.setattr(module, "_programs", lambda device, splits, others: programs)
    assert torch.equal(attend(given), one_program)
    alone = given.subset([2], width=100)
    assert torch.equal(attend(alone), one_program[3:7])
    reordered = given.subset([2, 1, 0], width=63)
    expected = torch.cat([one_program[3:7], one_program[2:3], one_program[:2]])
    assert torch.equal(attend(reordered), expected)


def test_many_sequences() -> None:
    given = paged_sequences([1 + 7 * (n % 5) for n in range(20)], [1] * 20, 1, 1, 16)
    assert_close(attend(given), given.expected_THD)


def test_rows_without_a_sequence_are_left_alone() -> None:
    given = paged_sequences([30, 300], [1, 1], 2, 2, 32)
    given = replace(
        given,
        length_S=torch.tensor([30, 0, 300, 0], dtype=torch.int32),
        table_SW=given.table_SW[[0, 0, 1, 1]],
        q_THD=given.q_THD[[0, 0, 1, 1]],
    )
    out = attend(given)
    assert_close(out[[0, 2]], given.expected_THD)
    assert out[[1, 3]].isnan().all()


def test_scratch_memory_serves_many_steps() -> None:
    given = paged_sequences([600, 257], [3, 1], 2, 1, 32)
    scratch = scratch_for(given)
    first = attend(given, scratch)
    assert torch.equal(attend(given.subset([1], 20), scratch), first[3:])
    assert torch.equal(attend(given, scratch), first)


def test_too_little_scratch_memory_is_refused() -> None:
    given = paged_sequences([600, 257], [3, 1], 2, 1, 32)
    small = scratch_for(given.subset([0], 38))
    with pytest.raises(ValueError, match="too small for 2 sequences of 3 tokens in 40 blocks"):
        attend(given, small)
    with pytest.raises(ValueError, match="max_query is 17; it must be between 1 and 16"):
        attend(replace(given, max_query=17))


def test_scratch_shapes_are_bounded_for_long_contexts() -> None:
    shapes = scratch_shapes(rows=256, max_query=1, heads=32, head_dim=96, max_blocks=8192)
    total = sum(torch.Size(shape).numel() * 4 for shape, _ in shapes.values())
    assert total < 105e6
