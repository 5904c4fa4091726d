"""What kernels do to single numbers and rows. bfloat16 is held as its bits, in uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from model.cpu.compiler.jit import inner


@intrinsic
def bfloat16(typingctx: Any, value: Any) -> Any:
    """A float32 rounded to bfloat16, to nearest, ties to even.

    In LLVM's 32-bit integers: numba would widen the sums to 64 bits, which is 8 times slower.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(args[0], word)
        odd = builder.and_(builder.lshr(bits, word(16)), word(1))
        rounded = builder.add(bits, builder.add(odd, word(0x7FFF)))
        return builder.trunc(builder.lshr(rounded, word(16)), ir.IntType(16))

    return types.uint16(types.float32), codegen


def assign(array, index, value):
    """Store a float32, rounded to the nearest (ties to even) where the array holds bfloat16."""
    raise NotImplementedError


@overload(assign, inline="always")
def _assign(array, index, value):
    if array.dtype == types.uint16:

        def assign_bfloat16(array, index, value):
            array[index] = bfloat16(value)

        return assign_bfloat16

    def assign_float(array, index, value):
        array[index] = value

    return assign_float


@inner
def exp(x):
    """e**x for float32 x, to 2 units in the last place; unlike libm's it vectorises.

    e**x = 2**whole * e**z with |z| <= ln(2)/2: exponent bits for the one, Taylor's series for the
    other.
    """
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    whole = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    # ln 2 in two parts, the first with few enough bits that its product is exact.
    z = (x - whole * np.float32(0.693359375)) + whole * np.float32(2.1219444005469058e-4)
    series = np.float32(1 / 5040)
    series = series * z + np.float32(1 / 720)
    series = series * z + np.float32(1 / 120)
    series = series * z + np.float32(1 / 24)
    series = series * z + np.float32(1 / 6)
    series = series * z + np.float32(0.5)
    series = series * z + np.float32(1)
    series = series * z + np.float32(1)
    return series * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@inner
def sigmoid(x):
    """1 / (1 + e**-x); without a branch, which would keep it from being vectorised."""
    return np.float32(1) / (np.float32(1) + exp(-x))


@inner
def rms_norm(row_E, weight_E, epsilon, out_E):
    """Root mean square norm of a row."""
    total = np.float32(0)
    for e in range(row_E.shape[0]):
        total += row_E[e] * row_E[e]
    scale = np.float32(1) / np.sqrt(total / np.float32(row_E.shape[0]) + epsilon)
    for e in range(row_E.shape[0]):
        assign(out_E, e, weight_E[e] * (row_E[e] * scale))


@inner
def copy_row(row_E, out_E):
    """Copy a float32 row, rounded to what ``out_E`` holds."""
    for e in range(row_E.shape[0]):
        assign(out_E, e, row_E[e])


@inner
def rotate(row_D, cos_D, sin_D, out_D):
    """Rotary embedding of a head, halves paired; see ``model.phi3v.rope.rotate``."""
    half = row_D.shape[0] // 2
    for d in range(half):
        assign(out_D, d, row_D[d] * cos_D[d] - row_D[d + half] * sin_D[d])
    for d in range(half):
        assign(out_D, d + half, row_D[d + half] * cos_D[d + half] + row_D[d] * sin_D[d + half])
