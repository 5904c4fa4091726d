"""Sequences in a paged cache with poisoned gaps, and their attention as torch computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.support.closeness import poisoned

BLOCK = 16
NOWHERE = 2**30  # a table entry that must not be used


@dataclass
class PagedSequences:
    """The arguments of ``paged_decode``, and what it must compute."""

    q_THD: Tensor
    cache_layer: Tensor
    table_SW: Tensor
    length_S: Tensor
    query_start_S1: Tensor
    max_query: int
    expected_THD: Tensor

    def subset(self, which: Sequence[int], width: int) -> PagedSequences:
        """Some of the sequences, in another order and with a table of another width."""
        starts = self.query_start_S1.tolist()
        rows = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in which])
        counts = [starts[s + 1] - starts[s] for s in which]
        table_SW = torch.full((len(which), width), NOWHERE, dtype=torch.int32)
        used = min(width, self.table_SW.shape[1])
        table_SW[:, :used] = self.table_SW[which, :used]
        return PagedSequences(
            self.q_THD[rows],
            self.cache_layer,
            table_SW,
            self.length_S[which],
            torch.tensor([0, *accumulate(counts)], dtype=torch.int32),
            max(counts),
            self.expected_THD[rows],
        )


def paged_sequences(
    lengths: Sequence[int],
    queries: Sequence[int],
    heads: int,
    groups: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
) -> PagedSequences:
    """Random sequences of these lengths in scattered blocks; the last tokens ask for attention."""
    torch.manual_seed(sum(lengths))
    blocks = [-(-length // BLOCK) for length in lengths]
    scattered = torch.randperm(sum(blocks) + 3)
    cache = poisoned(sum(blocks) + 3, 2, groups, BLOCK, dim, dtype=dtype)
    table_SW = torch.full((len(lengths), max(blocks) + 2), NOWHERE, dtype=torch.int32)
    q_THD = torch.randn(sum(queries), heads, dim).to(dtype)
    starts = [0, *accumulate(queries)]
    expected = []
    for s, (length, count) in enumerate(zip(lengths, queries, strict=True)):
        own = scattered[sum(blocks[:s]) :][: blocks[s]]
        table_SW[s, : blocks[s]] = own
        keys_values = torch.randn(2, groups, length, dim).to(dtype)
        for i, block in enumerate(own.tolist()):
            part = keys_values[:, :, i * BLOCK : (i + 1) * BLOCK]
            cache[block, :, :, : part.shape[2]] = part
        k, v = keys_values.double().repeat_interleave(heads // groups, dim=1)
        q = q_THD[starts[s] : starts[s + 1]].double().transpose(0, 1)
        seen = torch.arange(length) <= torch.arange(length - count, length)[:, None]
        expected.append(scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(0, 1))
    return PagedSequences(
        q_THD,
        cache,
        table_SW,
        torch.tensor(lengths, dtype=torch.int32),
        torch.tensor(starts, dtype=torch.int32),
        max(queries),
        torch.cat(expected).float(),
    )
