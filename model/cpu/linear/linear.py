"""Linear layers with packed weights: ``activation(x @ weight.T + bias)``.

Shape suffixes: T rows, K inputs, N outputs.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from model.cpu.compiler.jit import Kernel, address, array, read, record_type, take, take_next
from model.cpu.elementwise import assign, sigmoid
from model.cpu.linear.microkernel import PANEL, TILE_ROWS, compute_tile
from model.cpu.linear.products import row_blocks, rows_and_columns

Activation = Literal["none", "quick_gelu"]

_FIELDS = dict.fromkeys(
    ("x", "weight", "bias", "out", "rows", "inputs", "outputs", "panels", "words", "gelu"), np.intp
)


class TiledLinear(nn.Module):
    """An ``nn.Linear`` on the CPU with its weight packed for ``microkernel``.

    Args:
        packed: see ``packing.pack``.
        bias: ``(N,)``, or None.
        shape: outputs and inputs of the layer.
        activation: applied to the result.
    """

    def __init__(
        self,
        packed: Tensor,
        bias: Tensor | None,
        shape: tuple[int, int],
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        self._packed = packed
        self._outputs, self._inputs = shape
        self._bias = torch.zeros(self._outputs) if bias is None else bias.float().contiguous()
        self._gelu = activation == "quick_gelu"

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to ``x`` of shape ``(..., K)``; returns the same dtype."""
        kernel = linear_kernel(x.dtype is torch.bfloat16)
        rows = x.reshape(-1, self._inputs).contiguous()
        out = torch.empty(len(rows), self._outputs, dtype=x.dtype)
        records = kernel.records(
            x=address(rows),
            weight=address(self._packed),
            bias=address(self._bias),
            out=address(out),
            rows=len(rows),
            inputs=self._inputs,
            outputs=self._outputs,
            panels=self._packed.shape[0],
            words=self._packed.shape[1],
            gelu=self._gelu,
        )
        kernel.run(records)
        return out.view(*x.shape[:-1], self._outputs)


@cache
def linear_kernel(bfloat16: bool) -> Kernel:
    """The kernel of all layers with a dtype."""
    number: Any = np.uint16 if bfloat16 else np.float32
    word: Any = np.uint32 if bfloat16 else np.float32
    kind = record_type(_FIELDS)

    def linear(record: int) -> None:
        a = read(record, kind)
        x_TK = array(a.x, (a.rows, a.inputs), number)
        weight = array(a.weight, (a.panels, a.words, PANEL), word)
        bias_N = array(a.bias, a.outputs, np.float32)
        out_TN = array(a.out, (a.rows, a.outputs), number)
        tile = np.empty((TILE_ROWS, PANEL), np.float32)
        items = a.panels * row_blocks(a.rows)
        item = take(record, 0)
        while item < items:
            panel, first_row, count, start, columns = rows_and_columns(item, a.rows, a.outputs)
            for first in range(first_row, first_row + count, TILE_ROWS):
                rows = min(TILE_ROWS, a.rows - first)
                compute_tile(x_TK, first, rows, weight[panel], tile)
                for row in range(rows):
                    out_N = out_TN[first + row, start : start + columns]
                    if a.gelu:
                        for column in range(columns):
                            value = tile[row, column] + bias_N[start + column]
                            assign(out_N, column, value * sigmoid(np.float32(1.702) * value))
                    else:
                        for column in range(columns):
                            assign(out_N, column, tile[row, column] + bias_N[start + column])
            item = take_next(record, 0)

    return Kernel(linear, _FIELDS)
