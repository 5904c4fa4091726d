"""Quantized weights in kernels: parts of panels are dequantized when they are used.

A panel is read once for up to hundreds of rows. A dequantized part of it stays in the L1 cache while
these rows are multiplied. The order of summation does not depend on the number of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from model.cpu.compiler.jit import array
from model.cpu.linear.dequantization import MAKE, MULTIPLY, PART
from model.cpu.linear.microkernel import PANEL


def weights(address, scales, panels, words, groups, kind):
    """The packed weight at an address: an array, or a tuple with scales if it is quantized.

    Args:
        address: of ``(panels, words, 48)`` of ``kind``.
        scales: address of ``(panels, groups, 2, 48)`` bfloat16 scales and offsets.
        panels, words, groups: sizes.
        kind: uint32 or float32 if unquantized, uint16 for two int8 inputs, or uint64 for 16 int4
            inputs.
    """
    raise NotImplementedError


def panels_of(weight):
    """Number of panels of a weight."""
    raise NotImplementedError


def room_for(weight, x_TK):
    """A buffer for ``part_of`` to dequantize into; unused if the weight is not quantized."""
    raise NotImplementedError


def parts_of(weight, room):
    """Number of parts of a panel."""
    raise NotImplementedError


def part_of(weight, index, part, room):
    """A part of a panel in the format of ``microkernel.compute_tile``."""
    raise NotImplementedError


def multiply_row(weight, index, x_TK, sums):
    """Multiply a single row directly with a quantized panel; returns False if not applicable."""
    raise NotImplementedError


def scale_sums(weight, index, sums):
    """Multiply the sums of an int8 weight by its scales; does nothing for other weights."""
    raise NotImplementedError


@overload(weights, inline="always")
def _weights(address, scales, panels, words, groups, kind):
    if kind.dtype not in (types.uint16, types.uint64):
        return lambda address, scales, panels, words, groups, kind: array(
            address, (panels, words, PANEL), kind
        )
    return lambda address, scales, panels, words, groups, kind: (
        array(address, (panels, words, PANEL), kind),
        array(scales, (panels, groups, 2, PANEL), np.uint16),
    )


def _is_quantized(weight: Any) -> bool:
    return isinstance(weight, types.BaseTuple)


def _bits(weight: Any) -> int:
    return 8 if weight[0].dtype == types.uint16 else 4


def _rows(weight: Any, room: Any) -> int:
    """Rows of stored numbers in a part."""
    pairs = PART if room.dtype == types.uint32 else PART // 2
    return pairs if _bits(weight) == 8 else pairs // 8


@overload(panels_of)
def _panels_of(weight):
    if _is_quantized(weight):
        return lambda weight: weight[0].shape[0]
    return lambda weight: weight.shape[0]


@overload(room_for)
def _room_for(weight, x_TK):
    if not _is_quantized(weight):
        return lambda weight, x_TK: weight[0]
    number = np.uint32 if x_TK.dtype == types.uint16 else np.float32

    def room(weight, x_TK):
        buffer = np.empty(PART * PANEL + 16, number)
        skip = (-buffer.ctypes.data // 4) % 16  # the microkernel reads whole registers
        return buffer[skip : skip + PART * PANEL].reshape(PART, PANEL)

    return room


@overload(parts_of)
def _parts_of(weight, room):
    if not _is_quantized(weight):
        return lambda weight, room: 1
    most = _rows(weight, room)
    return lambda weight, room: (weight[0].shape[1] + most - 1) // most


@overload(part_of)
def _part_of(weight, index, part, room):
    if not _is_quantized(weight):
        return lambda weight, index, part, room: weight[index]
    most, make = _rows(weight, room), MAKE[_bits(weight), room.dtype == types.uint32]
    words = PART // most

    def made(weight, index, part, room):
        first = part * most
        rows = min(most, weight[0].shape[1] - first)
        scales_G = weight[1][index]
        per_group = weight[0].shape[1] // len(scales_G)
        step = min(per_group, rows)  # a group spans the panel, or a part holds several groups
        for row in range(0, rows, step):
            make(
                weight[0][index, first + row].ctypes.data,
                scales_G[(first + row) // per_group].ctypes.data,
                step,
                room[words * row].ctypes.data,
            )
        return room[: words * rows]

    return made


@overload(multiply_row)
def _multiply_row(weight, index, x_TK, sums):
    if not _is_quantized(weight):
        return lambda weight, index, x_TK, sums: False
    multiply = MULTIPLY[_bits(weight), x_TK.dtype == types.uint16]

    def row(weight, index, x_TK, sums):
        if len(x_TK) > 1:
            return False
        scales_G = weight[1][index]
        rows, inputs = weight[0].shape[1] // len(scales_G), x_TK.shape[1] // len(scales_G)
        sums[0] = 0
        for group in range(len(scales_G)):
            multiply(
                weight[0][index, group * rows].ctypes.data,
                scales_G[group].ctypes.data,
                rows,
                x_TK[0, group * inputs :].ctypes.data,
                sums.ctypes.data,
            )
        return True

    return row


@overload(scale_sums)
def _scale_sums(weight, index, sums):
    if not _is_quantized(weight) or _bits(weight) == 4:
        return lambda weight, index, sums: None

    def scale(weight, index, sums):
        scale_N = weight[1][index, 0, 0]
        for row in range(sums.shape[0]):
            for column in range(PANEL):
                sums[row, column] *= _float_of(scale_N[column])

    return scale


@intrinsic
def _float_of(typingctx: Any, half: Any) -> Any:
    """Convert a bfloat16 to float32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(args[0], word), word(16)), ir.FloatType())

    return types.float32(types.uint16), codegen
