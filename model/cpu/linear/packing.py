"""Packs weights in the order in which ``microkernel`` reads them.

Columns (outputs) are grouped in panels of 48; K is the outer dimension of a panel, so that a tile's loop
reads memory sequentially. Two consecutive bfloat16 of a column form a word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.cpu.linear.microkernel import PANEL

ALIGNMENT = 64  # bytes per register


def pack(weight_NK: Tensor) -> Tensor:
    """Pack a copy of an ``nn.Linear``'s weight.

    Args:
        weight_NK: float32, bfloat16 with an even K, or integers, which are packed unchanged.

    Returns:
        words ``(panels, words of a column, 48)``, int32 or the input's integers, aligned to 64 bytes;
        columns beyond N are zero.
    """
    words = _words(weight_NK)
    packed = _aligned(*_shape(words), words.dtype)
    _fill(packed, words)
    return packed


def pack_pairs(gate_IK: Tensor, up_IK: Tensor) -> Tensor:
    """Pack two weights with interleaved panels: one of ``gate``, one of ``up``, and so on."""
    gate, up = _words(gate_IK), _words(up_IK)
    panels, inputs, columns = _shape(gate)
    packed = _aligned(2 * panels, inputs, columns, gate.dtype)
    _fill(packed[::2], gate)
    _fill(packed[1::2], up)
    return packed


def nibbles(values: Tensor) -> Tensor:
    """Reorder int4 numbers for ``dequantization``: 16 inputs of a column in 64 bits.

    Args:
        values: uint8 ``(N, K / 2)``, the first of two numbers in the high bits.

    Returns:
        int64 ``(N, K / 16)``: from the lowest bits, numbers 0, 2, ..., 14, then 1, 3, ..., 15.
    """
    even, odd = values.view(len(values), -1, 4, 2).unbind(3)
    halves = torch.stack([even >> 4 | odd & 0xF0, even & 0xF | odd << 4], 2)
    return halves.flatten(1).view(torch.int64)


def _words(weight_NK: Tensor) -> Tensor:
    return weight_NK.contiguous().view(torch.int32) if weight_NK.is_floating_point() else weight_NK


def _shape(words: Tensor) -> tuple[int, int, int]:
    return -(-words.shape[0] // PANEL), words.shape[1], PANEL


def _fill(packed: Tensor, words: Tensor) -> None:
    """Write a weight's panels without temporary copies, whose memory would not be fully freed."""
    whole = len(words) // PANEL
    panels = words[: whole * PANEL].view(whole, PANEL, packed.shape[1])
    packed[:whole] = panels.transpose(1, 2)
    if whole < len(packed):
        rest = words[whole * PANEL :]
        packed[whole] = 0
        packed[whole, :, : len(rest)] = rest.T


def _aligned(panels: int, words: int, columns: int, dtype: torch.dtype) -> Tensor:
    shape = (panels, words, columns)
    size, most = torch.Size(shape).numel(), ALIGNMENT // dtype.itemsize
    buffer = torch.empty(size + most, dtype=dtype)
    skip = -(buffer.data_ptr() // dtype.itemsize) % most
    return buffer[skip : skip + size].view(shape)
