"""Products of activations with packed weights, shared by the threads of a kernel.

An item of work is a block of rows of one panel; neighbours share the panel, which then stays in the
cache.

Shape suffixes: T tokens, K inputs, N outputs, I intermediate size.
"""

from __future__ import annotations

import numpy as np

from model.cpu.elementwise import assign, sigmoid
from model.cpu.jit import inner, take, take_next, wait
from model.cpu.microkernel import PANEL, TILE_ROWS, compute_tile
from model.cpu.quantized import panel_of, panels_of, room_for

ROWS_PER_ITEM = 256  # of a product: one item of work is that many rows of a panel


@inner
def row_blocks(tokens):
    """Items of work that the rows of a product make per panel."""
    return (tokens + ROWS_PER_ITEM - 1) // ROWS_PER_ITEM


@inner
def multiply(record, phase, x_TK, weight, out_TN):
    """``out = x @ weight``, shared by the kernel's threads; the last panel may be cut by out's width."""
    _product(record, phase, x_TK, weight, out_TN, False)


@inner
def multiply_add(record, phase, x_TK, weight, out_TN):
    """``out += x @ weight``, shared by the kernel's threads."""
    _product(record, phase, x_TK, weight, out_TN, True)


@inner
def _product(record, phase, x_TK, weight, out_TN, add):
    tile, room = np.empty((TILE_ROWS, PANEL), np.float32), room_for(weight, x_TK)
    tokens, blocks = x_TK.shape[0], row_blocks(x_TK.shape[0])
    items = panels_of(weight) * blocks
    item = take(record, phase)
    while item < items:
        panel, block = item // blocks, item % blocks
        first_column = panel * PANEL
        columns = min(PANEL, out_TN.shape[1] - first_column)
        panel_K = panel_of(weight, panel, room)
        for first in range(
            block * ROWS_PER_ITEM, min((block + 1) * ROWS_PER_ITEM, tokens), TILE_ROWS
        ):
            rows = min(TILE_ROWS, tokens - first)
            compute_tile(x_TK, first, rows, panel_K, tile)
            for row in range(rows):
                out_N = out_TN[first + row, first_column : first_column + columns]
                if add:
                    for column in range(columns):
                        out_N[column] += tile[row, column]
                else:
                    for column in range(columns):
                        out_N[column] = tile[row, column]
        item = take_next(record, phase)
    wait(record, phase, items)


@inner
def gated_product(record, phase, x_TK, pairs, out_TI):
    """``silu(x @ gate) * (x @ up)`` of panels in pairs, as ``packing.pack_pairs`` makes them."""
    gate = np.empty((TILE_ROWS, PANEL), np.float32)
    up = np.empty((TILE_ROWS, PANEL), np.float32)
    gate_room, up_room = room_for(pairs, x_TK), room_for(pairs, x_TK)
    tokens, blocks = x_TK.shape[0], row_blocks(x_TK.shape[0])
    items = panels_of(pairs) // 2 * blocks
    item = take(record, phase)
    while item < items:
        panel, block = item // blocks, item % blocks
        first_column = panel * PANEL
        columns = min(PANEL, out_TI.shape[1] - first_column)
        gate_K = panel_of(pairs, 2 * panel, gate_room)
        up_K = panel_of(pairs, 2 * panel + 1, up_room)
        for first in range(
            block * ROWS_PER_ITEM, min((block + 1) * ROWS_PER_ITEM, tokens), TILE_ROWS
        ):
            rows = min(TILE_ROWS, tokens - first)
            compute_tile(x_TK, first, rows, gate_K, gate)
            compute_tile(x_TK, first, rows, up_K, up)
            for row in range(rows):
                out_I = out_TI[first + row, first_column : first_column + columns]
                for column in range(columns):
                    value = gate[row, column]
                    assign(out_I, column, value * sigmoid(value) * up[row, column])
        item = take_next(record, phase)
    wait(record, phase, items)
