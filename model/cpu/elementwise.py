"""Elementwise and row operations of kernels. bfloat16 is held as uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from model.cpu.compiler.jit import inner


@intrinsic
def bfloat16(typingctx: Any, value: Any) -> Any:
    """Round a float32 to bfloat16, to nearest, ties to even.

    Uses LLVM's 32-bit integers, because numba widens sums to 64 bits, which is 8 times slower.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(args[0], word)
        odd = builder.and_(builder.lshr(bits, word(16)), word(1))
        rounded = builder.add(bits, builder.add(odd, word(0x7FFF)))
        return builder.trunc(builder.lshr(rounded, word(16)), ir.IntType(16))

    return types.uint16(types.float32), codegen


def assign(array, index, value):
    """Store a float32, rounded (to nearest, ties to even) if the array holds bfloat16."""
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
    """e**x for float32 x, with an error of at most 2 ulp; unlike libm's it vectorizes.

    e**x = 2**whole * e**z with |z| <= ln(2)/2: the first factor is set in the exponent bits, the second
    is a Taylor series.
    """
    x = min(max(x, np.float32(-87.0)), np.float32(87.0))
    whole = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    # ln 2 is split in two parts; the first has so few bits that its product is exact.
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
    """1 / (1 + e**-x), without a branch, which would prevent vectorization."""
    return np.float32(1) / (np.float32(1) + exp(-x))


@inner
def rms_norm(row_E, weight_E, epsilon, out_E):
    """RMS norm of a row."""
    total = np.float32(0)
    for e in range(row_E.shape[0]):
        total += row_E[e] * row_E[e]
    scale = np.float32(1) / np.sqrt(total / np.float32(row_E.shape[0]) + epsilon)
    for e in range(row_E.shape[0]):
        assign(out_E, e, weight_E[e] * (row_E[e] * scale))


@inner
def copy_row(row_E, out_E):
    """Copy a float32 row, rounded to the dtype of ``out_E``."""
    for e in range(row_E.shape[0]):
        assign(out_E, e, row_E[e])


@inner
def rotate(row_D, cos_D, sin_D, out_D):
    """Rotary embedding of a head; see ``model.phi3v.rope.rotate``."""
    half = row_D.shape[0] // 2
    for d in range(half):
        assign(out_D, d, row_D[d] * cos_D[d] - row_D[d + half] * sin_D[d])
    for d in range(half):
        assign(out_D, d + half, row_D[d + half] * cos_D[d + half] + row_D[d] * sin_D[d + half])
