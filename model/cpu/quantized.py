"""Quantized weights in kernels: a panel is turned into the numbers that are multiplied when it is used.

Products go by panels, and a panel is read once for up to hundreds of rows, so that its numbers are
made in a cache and only the quantized ones are read from memory. What is summed is the same whatever
the number of rows.

Shape suffixes: K inputs, G groups of inputs with a scale and an offset of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from model.cpu.elementwise import bfloat16
from model.cpu.jit import array, inner
from model.cpu.microkernel import PANEL

_WORD, _FLOAT = ir.IntType(32), ir.FloatType()


@intrinsic
def _widened(typingctx: Any, bits: Any) -> Any:
    """The float32 of a bfloat16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.shl(builder.zext(args[0], _WORD), _WORD(16)), _FLOAT)

    return types.float32(types.uint16), codegen


@intrinsic
def _nibbles(typingctx: Any, byte: Any) -> Any:
    """The two numbers in a byte, less 8; in 32 bits, where numba would take 64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.zext(args[0], _WORD)
        first, second = builder.lshr(word, _WORD(4)), builder.and_(word, _WORD(15))
        numbers = [
            builder.sitofp(builder.sub(number, _WORD(8)), _FLOAT) for number in (first, second)
        ]
        return context.make_tuple(builder, signature.return_type, numbers)

    return types.UniTuple(types.float32, 2)(types.uint8), codegen


@intrinsic
def _pair(typingctx: Any, first: Any, second: Any) -> Any:
    """A word of two bfloat16, the first in its low half."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        low, high = (builder.zext(arg, _WORD) for arg in args)
        return builder.or_(low, builder.shl(high, _WORD(16)))

    return types.uint32(types.uint16, types.uint16), codegen


def _is_quantized(weight: Any) -> bool:
    return isinstance(weight, types.BaseTuple)


def weights(address, scales, panels, words, groups, kind):
    """A packed weight at an address: an array, or with scales a tuple that ``panel_of`` reads.

    Args:
        address: of ``(panels, words, 48)`` of ``kind``.
        scales: address of ``(panels, groups, 2, 48)`` bfloat16, scales and offsets.
        panels, words, groups: sizes.
        kind: uint32 or float32 of words to be multiplied, int8, or uint8 of two numbers each.
    """
    raise NotImplementedError


@overload(weights, inline="always")
def _weights(address, scales, panels, words, groups, kind):
    if kind.dtype not in (types.int8, types.uint8):
        return lambda address, scales, panels, words, groups, kind: array(
            address, (panels, words, PANEL), kind
        )
    return lambda address, scales, panels, words, groups, kind: (
        array(address, (panels, words, PANEL), kind),
        array(scales, (panels, groups, 2, PANEL), np.uint16),
    )


def panels_of(weight):
    """How many panels a weight has."""
    raise NotImplementedError


@overload(panels_of)
def _panels_of(weight):
    if _is_quantized(weight):
        return lambda weight: weight[0].shape[0]
    return lambda weight: weight.shape[0]


def room_for(weight, x_TK):
    """Where ``panel_of`` makes a panel for x: nowhere if the weight is not quantized."""
    raise NotImplementedError


@overload(room_for)
def _room_for(weight, x_TK):
    if not _is_quantized(weight):
        return lambda weight, x_TK: weight[0]
    number, per_word = (np.uint32, 2) if x_TK.dtype == types.uint16 else (np.float32, 1)

    def room(weight, x_TK):
        words = x_TK.shape[1] // per_word
        buffer = np.empty(words * PANEL + 16, number)
        skip = (-buffer.ctypes.data // 4) % 16  # the microkernel reads whole registers
        return buffer[skip : skip + words * PANEL].reshape(words, PANEL)

    return room


def panel_of(weight, index, room):
    """A panel as ``microkernel.compute_tile`` takes it."""
    raise NotImplementedError


@overload(panel_of)
def _panel_of(weight, index, room):
    if not _is_quantized(weight):
        return lambda weight, index, room: weight[index]
    numbers = _two_numbers if weight[0].dtype == types.uint8 else _two_rows
    store, rows = (_store_pairs, 1) if room.dtype == types.uint32 else (_store_rows, 2)

    def panel(weight, index, room):
        stored, scales_G = weight[0][index], weight[1][index]
        per_group = room.shape[0] // rows // scales_G.shape[0]
        for group in range(scales_G.shape[0]):
            scale, offset = scales_G[group, 0], scales_G[group, 1]
            for pair in range(group * per_group, (group + 1) * per_group):
                for column in range(PANEL):
                    first, second = numbers(stored, pair, column)
                    factor: Any = _widened(scale[column])
                    added = _widened(offset[column])
                    store(room, pair, column, first * factor + added, second * factor + added)
        return room

    return panel


@inner
def _two_numbers(stored, pair, column):
    return _nibbles(stored[pair, column])


@inner
def _two_rows(stored, pair, column):
    return np.float32(stored[2 * pair, column]), np.float32(stored[2 * pair + 1, column])


@inner
def _store_pairs(room, pair, column, first, second):
    room[pair, column] = _pair(bfloat16(first), bfloat16(second))


@inner
def _store_rows(room, pair, column, first, second):
    room[2 * pair, column] = first
    room[2 * pair + 1, column] = second
