"""Paged attention of single queries over keys and values in blocks; any dtype, any CPU.

torch's own function wants each sequence's keys in one piece and starts a parallel region for each;
for a step of many short sequences that costs several times the arithmetic.

Shape suffixes: T tokens of the step, S sequences with one query, H query heads, G key-value heads,
D head dim, N blocks in the cache, B slots of a block, P blocks of all sequences' tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model.cpu.elementwise import as_float, exp
from model.cpu.jit import Kernel, array, barrier, inner, read, record_type, take

_FIELDS = dict.fromkeys(
    (
        *("q", "k", "v", "keys", "values", "output"),
        *("block", "offset", "table", "row", "start", "length"),
        *("tokens", "singles", "heads", "groups", "head_dim", "num_blocks", "block_size"),
    ),
    np.intp,
)


def paged_attention(bfloat16: bool) -> Kernel:
    """Writes the step's keys and values into their slots, then attends the single queries.

    Fields of its record:
        q, output: float32 ``(T, H, D)``; of the output only rows of singles are written.
        k, v: new keys and values ``(T, G, D)``, in the cache's dtype.
        keys, values: a layer of the cache, ``(N, G, B, D)``.
        block, offset: the slot of each token, int64 ``(T,)``.
        table: blocks of the singles, one sequence after the other, int64 ``(P,)``.
        row: each single's row in ``q``; start: where its blocks start in ``table``; length: its
            stored positions with the new one; int64 ``(S,)``.
        tokens, singles, heads, groups, head_dim, num_blocks, block_size: sizes.
    """
    number: Any = np.uint16 if bfloat16 else np.float32
    kind = record_type(_FIELDS)

    def attend(record: int) -> None:
        a = read(record, kind)
        dim, groups, tokens, singles = a.head_dim, a.groups, a.tokens, a.singles
        cache = (a.num_blocks, groups, a.block_size, dim)
        keys_NGBD = array(a.keys, cache, number)
        values_NGBD = array(a.values, cache, number)
        k_TGD = array(a.k, (tokens, groups, dim), number)
        v_TGD = array(a.v, (tokens, groups, dim), number)
        block_T = array(a.block, tokens, np.int64)
        offset_T = array(a.offset, tokens, np.int64)
        t = take(record, 0)
        while t < tokens:
            block, offset = block_T[t], offset_T[t]
            for g in range(groups):
                for d in range(dim):
                    keys_NGBD[block, g, offset, d] = k_TGD[t, g, d]
                    values_NGBD[block, g, offset, d] = v_TGD[t, g, d]
            t = take(record, 0)
        barrier()
        q_THD = array(a.q, (tokens, a.heads, dim), np.float32)
        output_THD = array(a.output, (tokens, a.heads, dim), np.float32)
        row_S, start_S = array(a.row, singles, np.int64), array(a.start, singles, np.int64)
        length_S = array(a.length, singles, np.int64)
        # Heads before sequences, so that one long sequence is shared by all threads.
        item = take(record, 1)
        while item < groups * singles:
            g, s = item // singles, item % singles
            blocks = (length_S[s] + a.block_size - 1) // a.block_size
            table = array(a.table + 8 * start_S[s], blocks, np.int64)
            row = row_S[s]
            for h in range(g * (a.heads // groups), (g + 1) * (a.heads // groups)):
                _attend_one(
                    q_THD[row, h], keys_NGBD, values_NGBD, table, g, length_S[s], output_THD[row, h]
                )
            item = take(record, 1)

    return Kernel(attend, _FIELDS)


@inner
def _attend_one(q_D, keys_NGBD, values_NGBD, table, g, length, output_D):
    dim, block_size = q_D.shape[0], keys_NGBD.shape[2]
    scale = np.float32(1) / np.sqrt(np.float32(dim))
    weight_L = np.empty(length, np.float32)
    largest = np.float32(-np.inf)
    for b in range(table.shape[0]):
        keys_BD = keys_NGBD[table[b], g]
        for i in range(min(block_size, length - b * block_size)):
            score = np.float32(0)
            for d in range(dim):
                score += q_D[d] * as_float(keys_BD[i, d])
            score *= scale
            weight_L[b * block_size + i] = score
            largest = max(largest, score)
    total = np.float32(0)
    for position in range(length):
        weight_L[position] = exp(weight_L[position] - largest)
        total += weight_L[position]
    sum_D = np.zeros(dim, np.float32)
    for b in range(table.shape[0]):
        values_BD = values_NGBD[table[b], g]
        for i in range(min(block_size, length - b * block_size)):
            weight = weight_L[b * block_size + i]
            for d in range(dim):
                sum_D[d] += weight * as_float(values_BD[i, d])
    for d in range(dim):
        output_D[d] = sum_D[d] / total
