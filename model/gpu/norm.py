"""Residual addition and RMS norm in one pass.

Shape suffixes: T tokens, E hidden size.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.gpu.launch import INTERPRETED, Traffic, launch


def add_rms_norm(
    residual_TE: Tensor, added_TE: Tensor | None, weight_E: Tensor, eps: float, out_TE: Tensor
) -> None:
    """Add ``added_TE`` to ``residual_TE`` in place, and write the normed sum to ``out_TE``.

    Rounds as torch does: the sum to the dtype; the norm in float32, then to the dtype, times the weight.

    Args:
        residual_TE: contiguous; unchanged if ``added_TE`` is None.
        added_TE: contiguous, of the same dtype.
    """
    tokens, width = residual_TE.shape
    rows = 64 if INTERPRETED else 1

    def traffic() -> Traffic:
        row_bytes = residual_TE.nbytes
        added = added_TE is not None
        return Traffic(row_bytes * (1 + added) + weight_E.nbytes, row_bytes * (1 + added))

    launch(
        add_rms_norm_kernel,
        (triton.cdiv(tokens, rows),),
        residual_TE,
        added_TE if added_TE is not None else residual_TE,
        weight_E,
        out_TE,
        tokens,
        eps,
        traffic=traffic,
        ADDS=added_TE is not None,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        ROWS=rows,
        num_warps=8,
    )


@triton.jit(do_not_specialize=["tokens"])
def add_rms_norm_kernel(
    residual_TE,
    added_TE,
    weight_E,
    out_TE,
    tokens,
    eps,
    ADDS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program per ``ROWS`` rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    at = row[:, None].to(tl.int64) * WIDTH + column[None, :]
    inside = (row < tokens)[:, None] & (column < WIDTH)[None, :]
    dtype = residual_TE.dtype.element_ty
    x = tl.load(residual_TE + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_E + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    if ADDS:
        x = (x + tl.load(added_TE + at, mask=inside, other=0.0).to(tl.float32)).to(dtype)
        tl.store(residual_TE + at, x, mask=inside)
        x = x.to(tl.float32)
    mean = tl.sum(x * x, axis=1) / WIDTH
    normed = (x * tl.math.rsqrt(mean + eps)[:, None]).to(dtype).to(tl.float32)
    tl.store(out_TE + at, (weight[None, :] * normed).to(dtype), mask=inside)
