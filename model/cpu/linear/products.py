"""Products of activations with packed weights, divided among a kernel's threads.

An item of work is a block of rows with one panel; consecutive items share the panel, which then stays
in the CPU cache.

Shape suffixes: T tokens, K inputs, N outputs, I intermediate size.
"""

from __future__ import annotations

import numpy as np

from model.cpu.compiler.jit import inner, take, take_next, wait
from model.cpu.elementwise import assign, sigmoid
from model.cpu.linear.microkernel import PANEL, TILE_ROWS, compute_tile
from model.cpu.linear.quantized import (
    PART,
    multiply_row,
    panels_of,
    part_of,
    parts_of,
    room_for,
    scale_sums,
)

ROWS_PER_ITEM = 256  # maximum number of rows of an item of work


@inner
def row_blocks(tokens):
    """Number of items of work per panel."""
    return (tokens + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM


@inner
def rows_and_columns(item, tokens, outputs):
    """An item's panel, first row, number of rows, first column, and number of columns."""
    blocks = row_blocks(tokens)
    panel, block = item // blocks, item % blocks
    first_row, first_column = block * ROWS_PER_ITEM, panel * PANEL
    rows = min(ROWS_PER_ITEM, tokens - first_row)
    return panel, first_row, rows, first_column, min(PANEL, outputs - first_column)


@inner
def multiply(record, phase, x_TK, weight, out_TN):
    """``out = x @ weight``, on all threads of the kernel; ``out`` may cut the last panel."""
    _product(record, phase, x_TK, weight, out_TN, False)


@inner
def multiply_add(record, phase, x_TK, weight, out_TN):
    """``out += x @ weight``, on all threads of the kernel."""
    _product(record, phase, x_TK, weight, out_TN, True)


@inner
def _product(record, phase, x_TK, weight, out_TN, add):
    tokens, outputs = x_TK.shape[0], out_TN.shape[1]
    sums, room = _sums_for(tokens), room_for(weight, x_TK)
    items = panels_of(weight) * row_blocks(tokens)
    item = take(record, phase)
    while item < items:
        panel, first_row, rows, first_column, columns = rows_and_columns(item, tokens, outputs)
        _sum_up(x_TK[first_row : first_row + rows], weight, panel, room, sums)
        for row in range(rows):
            out_N = out_TN[first_row + row, first_column : first_column + columns]
            if add:
                for column in range(columns):
                    out_N[column] += sums[row, column]
            else:
                for column in range(columns):
                    out_N[column] = sums[row, column]
        item = take_next(record, phase)
    wait(record, phase, items)


@inner
def gated_product(record, phase, x_TK, pairs, out_TI):
    """``silu(x @ gate) * (x @ up)``, with panels from ``packing.pack_pairs``."""
    tokens, outputs = x_TK.shape[0], out_TI.shape[1]
    gate, up, room = _sums_for(tokens), _sums_for(tokens), room_for(pairs, x_TK)
    items = panels_of(pairs) // 2 * row_blocks(tokens)
    item = take(record, phase)
    while item < items:
        panel, first_row, rows, first_column, columns = rows_and_columns(item, tokens, outputs)
        x = x_TK[first_row : first_row + rows]
        _sum_up(x, pairs, 2 * panel, room, gate)
        _sum_up(x, pairs, 2 * panel + 1, room, up)
        for row in range(rows):
            out_I = out_TI[first_row + row, first_column : first_column + columns]
            for column in range(columns):
                value = gate[row, column]
                assign(out_I, column, value * sigmoid(value) * up[row, column])
        item = take_next(record, phase)
    wait(record, phase, items)


@inner
def _sums_for(tokens):
    """A buffer for the sums of an item."""
    return np.empty((min(tokens, ROWS_PER_ITEM), PANEL), np.float32)


@inner
def _sum_up(x_TK, weight, panel, room, sums):
    """``sums = x @ panel``, for all rows of x."""
    if not multiply_row(weight, panel, x_TK, sums):
        per_part = PART * 4 // x_TK.itemsize
        for part in range(parts_of(weight, room)):
            part_K, x = part_of(weight, panel, part, room), x_TK[:, part * per_part :]
            for first in range(0, len(x), TILE_ROWS):
                rows = min(TILE_ROWS, len(x) - first)
                compute_tile(x, first, rows, part_K, sums[first:], part > 0)
    scale_sums(weight, panel, sums[: len(x_TK)])
