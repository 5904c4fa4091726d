"""Paged attention on the CPU.

torch's attention needs each sequence's keys to be contiguous and starts a parallel region per sequence;
with many short sequences that costs several times the arithmetic. Here a block's keys are transposed
(head dim before slots), so that a register holds one dimension of 16 keys, and no sums across a
register are needed. Up to 8 consecutive queries of a sequence (a tile) share what is read. Results are
bit-identical regardless of tile, step or batch.

Shape suffixes: T tokens of the step, H query heads, G key-value heads, D head dim, N blocks in the
cache, B slots of a block (16), P entries of all block tables, Q queries of a tile, L positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model.cpu.blocks import BLOCK, add_values, score_keys
from model.cpu.compiler.jit import Kernel, array, inner, read, record_type, take, take_next, wait
from model.cpu.elementwise import exp

_NUMBERS = ("q", "k", "v", "keys", "values", "output")
_PLACES = ("block", "offset", "table", "tile_row", "tile_size", "tile_start", "tile_length")
_SIZES = ("tokens", "tiles", "heads", "groups", "head_dim", "num_blocks")
FIELDS = dict.fromkeys(_NUMBERS + _PLACES + _SIZES, np.intp)
KIND = record_type(FIELDS)


def paged_attention(bfloat16: bool) -> Kernel:
    """Create the kernel that stores a step's keys and values and computes its attention.

    Fields of its record:
        q, output: float32 ``(T, H, D)``.
        k, v: new keys and values ``(T, G, D)``, in the cache's dtype.
        keys, values: a layer of the cache, ``(N, G, D, B)`` and ``(N, G, B, D)``.
        block, offset: the slot of each token, int64 ``(T,)``.
        table: concatenated block tables, int64 ``(P,)``.
        tile_row, tile_size, tile_start, tile_length: int64, for each tile: its first row in ``q``; its
            number of queries (8, 4 or 1); the start of its sequence's blocks in ``table``; and the
            number of positions its first query attends to, including itself (the next one: one more).
        tokens, tiles, heads, groups, head_dim, num_blocks: sizes; head_dim a multiple of 16.
    """
    number: Any = np.uint16 if bfloat16 else np.float32

    def attention(record: int) -> None:
        attend(record, number)

    return Kernel(attention, FIELDS)


@inner
def attend(record, number):
    """The body of the kernel; ``number`` is the cache's dtype."""
    a = read(record, KIND)
    dim, groups, tokens, tiles = a.head_dim, a.groups, a.tokens, a.tiles
    keys_NGDB = array(a.keys, (a.num_blocks, groups, dim, BLOCK), number)
    values_NGBD = array(a.values, (a.num_blocks, groups, BLOCK, dim), number)
    k_TGD = array(a.k, (tokens, groups, dim), number)
    v_TGD = array(a.v, (tokens, groups, dim), number)
    block_T = array(a.block, tokens, np.int64)
    offset_T = array(a.offset, tokens, np.int64)
    t = take(record, 0)
    while t < tokens:
        block, offset = block_T[t], offset_T[t]
        for g in range(groups):
            for d in range(dim):
                keys_NGDB[block, g, d, offset] = k_TGD[t, g, d]
            for d in range(dim):
                values_NGBD[block, g, offset, d] = v_TGD[t, g, d]
        t = take_next(record, 0)
    wait(record, 0, tokens)
    q_THD = array(a.q, (tokens, a.heads, dim), np.float32)
    output_THD = array(a.output, (tokens, a.heads, dim), np.float32)
    tile_row, tile_size = array(a.tile_row, tiles, np.int64), array(a.tile_size, tiles, np.int64)
    tile_start = array(a.tile_start, tiles, np.int64)
    tile_length = array(a.tile_length, tiles, np.int64)
    per_group = a.heads // groups
    # Heads are the outer loop, so that a head's keys and values stay in the CPU cache.
    item = take(record, 1)
    while item < groups * tiles:
        g, tile = item // tiles, item % tiles
        row, rows, length = tile_row[tile], tile_size[tile], tile_length[tile]
        blocks = (length + rows - 1 + BLOCK - 1) // BLOCK
        table = array(a.table + 8 * tile_start[tile], blocks, np.int64)
        weights_QL = np.empty((rows, blocks * BLOCK), np.float32)
        for h in range(g * per_group, (g + 1) * per_group):
            q_QD, output_QD = q_THD[row : row + rows, h], output_THD[row : row + rows, h]
            _attend_tile(q_QD, keys_NGDB, values_NGBD, table, g, length, weights_QL, output_QD)
        item = take_next(record, 1)
    wait(record, 1, groups * tiles)


@inner
def _attend_tile(q_QD, keys_NGDB, values_NGBD, table, g, length, weights_QL, output_QD):
    """Attention of a tile's queries; ``weights_QL`` is scratch memory of whole blocks."""
    rows, dim = q_QD.shape
    scale = np.float32(1) / np.sqrt(np.float32(dim))
    for b in range(table.shape[0]):
        score_keys(q_QD, rows, keys_NGDB[table[b], g], weights_QL, b * BLOCK)
    longest = length + rows - 1
    for row in range(rows):
        _softmax(weights_QL[row], length + row, longest, scale)
    output_QD[:] = 0
    for b in range(table.shape[0]):
        count = min(BLOCK, longest - b * BLOCK)
        add_values(weights_QL, rows, b * BLOCK, count, values_NGBD[table[b], g], output_QD)


@inner
def _softmax(scores_L, length, longest, scale):
    """Softmax of the first ``length`` scores times ``scale``; sets the rest up to ``longest`` to 0."""
    largest = np.float32(-np.inf)
    for position in range(length):
        largest = max(largest, scores_L[position])
    total = np.float32(0)
    for position in range(length):
        scores_L[position] = exp((scores_L[position] - largest) * scale)
        total += scores_L[position]
    for position in range(length):
        scores_L[position] /= total
    for position in range(length, longest):
        scores_L[position] = np.float32(0)
