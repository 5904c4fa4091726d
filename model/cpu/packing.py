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
    columns, inputs = weight_NK.shape
    panels = -(-columns // PANEL)
    per_word = 4 // weight_NK.element_size()
    packed = _aligned(panels, inputs // per_word, PANEL)
    words_NK = weight_NK.contiguous().view(torch.int32)
    whole = columns // PANEL
    packed[:whole] = words_NK[: whole * PANEL].view(whole, PANEL, packed.shape[1]).transpose(1, 2)
    if whole < panels:
        rest = words_NK[whole * PANEL :]
        packed[whole] = 0
        packed[whole, :, : len(rest)] = rest.T
    return packed


def pack_pairs(gate_IK: Tensor, up_IK: Tensor) -> Tensor:
    """The panels of two weights in turn: one of ``gate``, one of ``up``, and so on."""
    gate, up = pack(gate_IK), pack(up_IK)
    packed = _aligned(2 * len(gate), *gate.shape[1:])
    packed[::2], packed[1::2] = gate, up
    return packed


def _aligned(*shape: int) -> Tensor:
    size = torch.Size(shape).numel()
    buffer = torch.empty(size + ALIGNMENT // 4, dtype=torch.int32)
    skip = -(buffer.data_ptr() // 4) % (ALIGNMENT // 4)
    return buffer[skip : skip + size].view(shape)
