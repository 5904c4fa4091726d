"""Attention of the last tokens of sequences over their blocks of the cache.

A sequence's keys are cut into *splits*, so that many multiprocessors read one long sequence. Programs
take splits of all sequences in turn; whoever finishes the last split of a sequence merges them, in the
order of their positions. Split borders depend on the sequence's length alone, so its bits do not
depend on the batch.

Shape suffixes: T tokens of the step, S sequences, H query heads, G key-value heads, D head dim,
N blocks, B slots of a block (16), W widest block table.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from model.gpu.launch import INTERPRETED, Traffic, launch
from model.gpu.paged_decode_kernel import paged_decode_kernel
from model.gpu.rope_store import BLOCK
from model.gpu.support import MAX_SPLITS, SPLIT

TILE = 256 if INTERPRETED else 32  # positions that a program attends to at once
MAX_QUERY = 16
PIPELINE_BYTES = 48 * 1024  # of shared memory, so that two programs fit on a multiprocessor
PROGRAMS = 8  # per multiprocessor
FEW_SEQUENCES = 256  # up to which two compiled kernels serve steps of any number


def scratch_shapes(
    rows: int, max_query: int, heads: int, head_dim: int, max_blocks: int, split: int = SPLIT
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of ``DecodeScratch``'s tensors, by name.

    Args:
        rows: most sequences of a step.
        max_query: most tokens of a sequence in a step, up to 16.
        max_blocks: widest block table.
    """
    partials = rows * max_query * heads * most_splits(max_blocks, split)
    return {
        "output": ((partials, head_dim), torch.float32),
        "largest": ((partials,), torch.float32),
        "total": ((partials,), torch.float32),
        "finished": ((rows * max_query * heads,), torch.int32),
    }


def most_splits(max_blocks: int, split: int = SPLIT) -> int:
    """The most splits that a sequence of ``max_blocks`` blocks has."""
    return min(triton.cdiv(max_blocks * BLOCK, split), MAX_SPLITS)


def split_count(length: int, split: int = SPLIT) -> int:
    """Splits of a sequence of ``length`` tokens."""
    while split * MAX_SPLITS < length:
        split *= 2
    return int(triton.cdiv(length, split))


@dataclass(frozen=True)
class DecodeScratch:
    """Memory for the results of splits, shared by all layers on one stream.

    Attributes:
        output: each split's weighted values, relative to its largest score.
        largest, total: each split's largest score and sum of exponentials.
        finished: counters of finished splits; zero between launches.
    """

    output: Tensor
    largest: Tensor
    total: Tensor
    finished: Tensor

    @classmethod
    def allocate(
        cls,
        rows: int,
        max_query: int,
        heads: int,
        head_dim: int,
        max_blocks: int,
        device: torch.device | str,
        split: int = SPLIT,
    ) -> DecodeScratch:
        """Allocate for steps of these sizes; see ``scratch_shapes``."""
        shapes = scratch_shapes(rows, max_query, heads, head_dim, max_blocks, split)
        tensors = {
            name: torch.empty(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in shapes.items()
        }
        tensors["finished"].zero_()
        return cls(**tensors)


def paged_decode(
    q_THD: Tensor,
    cache_layer: Tensor,
    table_SW: Tensor,
    length_S: Tensor,
    query_start_S1: Tensor | None,
    max_query: int,
    scratch: DecodeScratch,
    out_THD: Tensor,
    split: int = SPLIT,
) -> None:
    """Causal attention of the last ``max_query`` or fewer tokens of each sequence.

    Args:
        q_THD: rotated queries, contiguous, sequence by sequence.
        cache_layer: ``(N, 2, G, B, D)``, contiguous; holds the keys and values of this step too.
        table_SW: int32 blocks of each sequence; entries beyond its length are not read.
        length_S: int32 tokens of each sequence, with this step's; 0 for a row without a sequence,
            whose output is not written.
        query_start_S1: int32 first row of each sequence in ``q_THD``, and the end; None if each has
            one row.
        max_query: the most tokens of a sequence, 1 to 16.
        scratch: of at least the step's size.
        out_THD: in the dtype of ``q_THD``.
        split: tokens of a split before it is doubled, a multiple of 32.

    Raises:
        ValueError: the scratch memory is too small, or ``max_query`` is out of range.
    """
    sequences, width = table_SW.shape
    heads, dim = q_THD.shape[1:]
    groups = cache_layer.shape[2]
    splits = most_splits(width, split)
    if not 1 <= max_query <= MAX_QUERY:
        raise ValueError(f"max_query is {max_query}; it must be between 1 and {MAX_QUERY}")
    if sequences * splits * heads * max_query > scratch.total.shape[0]:
        raise ValueError(
            f"DecodeScratch is too small for {sequences} sequences of {max_query} tokens in "
            f"{width} blocks; allocate it for these sizes"
        )
    max_rows = max_query * heads // groups
    form = _form(max_rows, dim, q_THD.dtype)
    chunks = triton.cdiv(max_rows, form["ROWS"])
    launch(
        paged_decode_kernel,
        (_programs(q_THD.device, sequences * splits, groups * chunks), groups, chunks),
        *(q_THD, cache_layer, table_SW, length_S),
        query_start_S1 if query_start_S1 is not None else length_S,
        *(scratch.output, scratch.largest, scratch.total, scratch.finished),
        out_THD,
        *(sequences, width, splits, max_rows),
        dim**-0.5 * 1.4426950408889634,  # 1 / ln 2: exponentials are powers of 2
        traffic=lambda: _traffic(q_THD, cache_layer, length_S, query_start_S1, chunks, split),
        RAGGED=query_start_S1 is not None,
        HEADS=heads,
        GROUPS=groups,
        DIM=dim,
        SLOTS=BLOCK,
        SPLIT=split,
        MAX_SPLITS=MAX_SPLITS,
        SEQUENCES=_padded(sequences),
        TILE=TILE,
        num_warps=4,
        **form,
    )


def _form(max_rows: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Tiles, precision and pipelining of the kernel, such that they fit in any GPU's shared memory."""
    exact = dtype == torch.float32
    first = 1 << (dim.bit_length() - 1)
    rest = max(16, triton.next_power_of_2(dim - first)) if dim > first else 0
    most_rows = 16 if exact or dim > 128 else 64
    tile_bytes = 2 * TILE * (first + rest) * dtype.itemsize
    return {
        "ROWS": min(max(16, triton.next_power_of_2(max_rows)), most_rows),  # products need 16
        "FIRST": first,
        "REST": rest,
        "PRECISION": "ieee" if exact else "tf32",
        # Block numbers are loaded a stage ahead, so 5 stages hold two tiles and 3 hold one.
        "num_stages": 5 if 2 * tile_bytes <= PIPELINE_BYTES else 3,
    }


def _traffic(
    q_THD: Tensor,
    cache_layer: Tensor,
    length_S: Tensor,
    query_start_S1: Tensor | None,
    chunks: int,
    split: int,
) -> Traffic:
    lengths = length_S.tolist()
    counts = query_start_S1.diff().tolist() if query_start_S1 is not None else [1] * len(lengths)
    return paged_traffic(q_THD, cache_layer, lengths, counts, chunks, split)


def paged_traffic(
    q_THD: Tensor,
    cache_layer: Tensor,
    lengths: Sequence[int],
    counts: Sequence[int],
    chunks: int = 1,
    split: int = SPLIT,
) -> Traffic:
    """Bytes of a launch: keys and values, queries and results, and partial results.

    Args:
        q_THD: queries.
        cache_layer: as for ``paged_decode``.
        lengths: tokens of each sequence.
        counts: how many of them are queries.
        chunks: how many times keys and values are read.
        split: as for ``paged_decode``.
    """
    heads, dim = q_THD.shape[1:]
    read, written = q_THD.nbytes + 4 * len(lengths), q_THD.nbytes
    for length, count in zip(lengths, counts, strict=True):
        splits = split_count(length, split)
        slots = triton.cdiv(length, BLOCK)
        read += 2 * length * cache_layer[0, 0, :, 0].nbytes * chunks + 4 * slots
        if splits > 1:
            partial = count * heads * splits * (dim + 2) * 4
            read += partial
            written += partial
    return Traffic(read, written)


def _padded(sequences: int) -> int:
    """Length of the vector of all sequences; few lengths, so that few kernels are compiled."""
    return next(
        (size for size in (16, FEW_SEQUENCES) if sequences <= size),
        triton.next_power_of_2(sequences),
    )


def _programs(device: torch.device, splits: int, others: int) -> int:
    """Programs per head: enough to fill the device, and no more than there may be splits."""
    if device.type != "cuda":
        return 1
    return min(splits, triton.cdiv(PROGRAMS * _multiprocessors(device), others))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
