"""Weights in the order in which ``microkernel`` reads them.

Columns (output features) go in panels of 48; within a panel K runs slowest, so that a tile's loop
reads memory in order. Two consecutive bfloat16 of a column form a word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.cpu.microkernel import PANEL

ALIGNMENT = 64  # bytes of a register


def pack(weight_NK: Tensor) -> Tensor:
    """Packed copy of a weight as ``nn.Linear`` holds it.

    Args:
        weight_NK: float32, or bfloat16 with an even K.

    Returns:
        int32 words ``(panels, K or K / 2, 48)``, aligned to 64 bytes; columns past N are zero.
    """
    packed = _aligned(*_shape(weight_NK))
    _fill(packed, weight_NK)
    return packed


def pack_pairs(gate_IK: Tensor, up_IK: Tensor) -> Tensor:
    """The panels of two weights in turn: one of ``gate``, one of ``up``, and so on."""
    panels, *panel = _shape(gate_IK)
    packed = _aligned(2 * panels, *panel)
    _fill(packed[::2], gate_IK)
    _fill(packed[1::2], up_IK)
    return packed


def _shape(weight_NK: Tensor) -> tuple[int, int, int]:
    columns, inputs = weight_NK.shape
    return -(-columns // PANEL), inputs * weight_NK.element_size() // 4, PANEL


def _fill(packed: Tensor, weight_NK: Tensor) -> None:
    """Write a weight's panels; without copies on the way, whose memory would not all come back."""
    words_NK = weight_NK.contiguous().view(torch.int32)
    whole = len(words_NK) // PANEL
    panels = words_NK[: whole * PANEL].view(whole, PANEL, packed.shape[1])
    packed[:whole] = panels.transpose(1, 2)
    if whole < len(packed):
        rest = words_NK[whole * PANEL :]
        packed[whole] = 0
        packed[whole, :, : len(rest)] = rest.T


def _aligned(*shape: int) -> Tensor:
    size = torch.Size(shape).numel()
    buffer = torch.empty(size + ALIGNMENT // 4, dtype=torch.int32)
    skip = -(buffer.data_ptr() // 4) % (ALIGNMENT // 4)
    return buffer[skip : skip + size].view(shape)
