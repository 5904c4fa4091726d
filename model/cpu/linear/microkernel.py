"""The innermost loop of a matrix product, as LLVM code with sums in registers.

It computes a tile of up to 8 rows by 48 columns at once: 24 sums of 16 floats, three registers of
weights and one input fit into the 32 registers of AVX-512. Each element is summed along K in order, so
results are bit-identical regardless of batching.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from model.cpu.compiler.vectors import FLOATS, LANES, PAIRS, WORDS, everywhere, loop, multiply_add

VECTORS = 3
PANEL = LANES * VECTORS  # columns of a tile
TILE_ROWS = 8

_INT, _FLOAT, _WORD = ir.IntType(64), ir.FloatType(), ir.IntType(32)


def supported(bfloat16: bool) -> bool:
    """Whether this is the fastest method on this CPU: AVX-512, with bfloat16 products but no AMX."""
    features = llvm.get_host_cpu_features()
    if not bfloat16:
        return bool(features.get("avx512f"))
    return bool(features.get("avx512bf16")) and not features.get("amx-bf16")


def _make(rows: int, vectors: int, bfloat16: bool) -> Any:
    """Create ``(x, weight, tile, row strides of x and tile in words, words, onto)`` for ``rows`` rows.

    A word is a float32 or a pair of bfloat16; x is ``(rows, words)``, the weight's panel
    ``(words, 16 * vectors)`` and the tile ``(rows, 16 * vectors)`` float32. If ``onto`` is not 0, the
    products are added to the tile.
    """

    @intrinsic
    def micro(
        typingctx: Any,
        x: Any,
        weight: Any,
        tile: Any,
        stride: Any,
        tile_stride: Any,
        words: Any,
        onto: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _emit(builder, rows, vectors, bfloat16, args)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7), codegen

    return micro


def _emit(builder: Any, rows: int, vectors: int, bfloat16: bool, args: Any) -> None:
    x, weight, tile, stride, tile_stride, words, onto = args
    operand = PAIRS if bfloat16 else FLOATS
    x = builder.inttoptr(x, _WORD.as_pointer())
    weight = builder.inttoptr(weight, WORDS.as_pointer())
    out = builder.inttoptr(tile, _FLOAT.as_pointer())
    places = []
    for index in range(rows * vectors):
        row, vector = divmod(index, vectors)
        at = builder.add(builder.mul(tile_stride, _INT(row)), _INT(vector * LANES))
        places.append(builder.bitcast(builder.gep(out, [at]), FLOATS.as_pointer()))
    zeros = ir.Constant(FLOATS, [0.0] * LANES)
    goes_on = builder.icmp_signed("!=", onto, _INT(0))
    begun = [builder.select(goes_on, builder.load(place, align=4), zeros) for place in places]
    row_starts = [builder.gep(x, [builder.mul(stride, _INT(row))]) for row in range(rows)]

    def add(word: Any, sums: list[Any]) -> list[Any]:
        weights = []
        for vector in range(vectors):
            at = builder.add(builder.mul(word, _INT(vectors)), _INT(vector))
            stored = builder.load(builder.gep(weight, [at]), align=64)
            weights.append(builder.bitcast(stored, operand))
        new = []
        for row in range(rows):
            value = everywhere(builder, builder.gep(row_starts[row], [word]), operand)
            for vector in range(vectors):
                total = sums[row * vectors + vector]
                new.append(multiply_add(builder, total, value, weights[vector]))
        return new

    new = loop(builder, words, 1, begun, add)
    for value, place in zip(new, places, strict=True):
        builder.store(value, place, align=4)


_KERNELS = {
    (vectors, bfloat16): tuple(_make(rows, vectors, bfloat16) for rows in (8, 4, 2, 1))
    for vectors in (VECTORS, 1)
    for bfloat16 in (True, False)
}


def compute_tile(x_TK, first, rows, panel_K, tile, onto=False, narrow=False):
    """Multiply ``rows`` rows (at most 8) of x from ``first`` with a panel, into ``tile``.

    Args:
        x_TK: float32, or bfloat16 as uint16; rows may be strided.
        first, rows: which rows.
        panel_K: ``(K, 48)`` float32, or ``(K / 2, 48)`` pairs of bfloat16 as uint32.
        tile: float32 ``(8, 48)``, starting with row ``first``; rows may be strided.
        onto: whether to add to the tile.
        narrow: whether the panel and the tile have 16 columns; must be a constant.
    """
    raise NotImplementedError


@overload(compute_tile, prefer_literal=True)
def _compute_tile(x_TK, first, rows, panel_K, tile, onto=False, narrow=False):
    vectors = 1 if getattr(narrow, "literal_value", narrow) else VECTORS
    eight, four, two, one = _KERNELS[vectors, x_TK.dtype == types.uint16]

    def compute(x_TK, first, rows, panel_K, tile, onto=False, narrow=False):
        words = panel_K.shape[0]
        stride = x_TK.strides[0] // 4
        x, weight, out = x_TK.ctypes.data, panel_K.ctypes.data, tile.ctypes.data
        tile_stride, begun = tile.strides[0] // 4, np.intp(onto)
        done = 0
        while done < rows:
            source, target = x + 4 * (first + done) * stride, out + 4 * done * tile_stride
            if rows - done >= 8:
                eight(source, weight, target, stride, tile_stride, words, begun)
                done += 8
            elif rows - done >= 4:
                four(source, weight, target, stride, tile_stride, words, begun)
                done += 4
            elif rows - done >= 2:
                two(source, weight, target, stride, tile_stride, words, begun)
                done += 2
            else:
                one(source, weight, target, stride, tile_stride, words, begun)
                done += 1

    return compute
