"""The gate of the decoder's MLP.

Shape suffixes: T tokens, I intermediate size.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.gpu.launch import INTERPRETED, Traffic, launch


def silu_gate(gate_up_TI2: Tensor, out_TI: Tensor) -> None:
    """Write ``up * silu(gate)``, where gate is the first half of the columns and up the second.

    Rounds as torch does: silu in float32, then to the dtype, then the product.
    """
    tokens, width = out_TI.shape
    rows, columns = (64, triton.next_power_of_2(width)) if INTERPRETED else (1, 1024)
    launch(
        silu_gate_kernel,
        (triton.cdiv(tokens, rows), triton.cdiv(width, columns)),
        gate_up_TI2,
        out_TI,
        tokens,
        traffic=lambda: Traffic(gate_up_TI2.nbytes, out_TI.nbytes),
        WIDTH=width,
        COLUMNS=columns,
        ROWS=rows,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["tokens"])
def silu_gate_kernel(
    gate_up_TI2,
    out_TI,
    tokens,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program per ``ROWS`` rows and ``COLUMNS`` columns."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    inside = (row < tokens) & (column < WIDTH)
    dtype = out_TI.dtype.element_ty
    at = gate_up_TI2 + row * (2 * WIDTH) + column
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(out_TI + row * WIDTH + column, (up * silu).to(dtype), mask=inside)
