"""Applies token masks to logits in one pass; torch's operators need four.

Shape suffixes: G rows with a grammar, V vocabulary, B bytes of a mask.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from model.cpu.compiler.jit import Kernel, address, array, inner, read, record_type, take, take_next

FIELDS = {
    "largest": np.float32,
    **dict.fromkeys(
        ("logits", "masks", "highest", "out", "rows", "vocabulary", "num_bytes"), np.intp
    ),
}
KIND = record_type(FIELDS)


def _mask(record):
    a = read(record, KIND)
    logits_GV = array(a.logits, (a.rows, a.vocabulary), np.float32)
    masks_GB = array(a.masks, (a.rows, a.num_bytes), np.uint8)
    highest = array(a.highest, (256, 8), np.float32)
    out_GV = array(a.out, (a.rows, a.vocabulary), np.float32)
    row = take(record, 0)
    while row < a.rows:
        _mask_row(logits_GV[row], masks_GB[row], highest, a.largest, out_GV[row])
        row = take_next(record, 0)


@inner
def _mask_row(logits_V, mask_B, highest, largest, out_V):
    whole = logits_V.shape[0] // 8
    for b in range(whole):
        byte = mask_B[b]
        for i in range(8):  # a constant, so that the loop vectorizes
            out_V[8 * b + i] = _limit(logits_V[8 * b + i], largest, highest[byte, i])
    for v in range(8 * whole, logits_V.shape[0]):
        out_V[v] = _limit(logits_V[v], largest, highest[mask_B[whole], v - 8 * whole])


@inner
def _limit(logit, largest, highest):
    logit = logit if logit > -largest else -largest  # False for NaN, which becomes the lowest
    return min(min(logit, largest), highest)


class CpuMaskKernel:
    """The compiled version of ``model.engine.sampling.token_masks.TorchMaskKernel``.

    Args:
        highest: upper limits of the eight logits of each byte of a mask, float32 ``(256, 8)``.
        largest: maximum magnitude of a logit; NaN becomes the lowest.
    """

    def __init__(self, highest: Tensor, largest: float) -> None:
        self._kernel = Kernel(_mask, FIELDS)
        self._highest = highest
        self._record = self._kernel.records(highest=address(highest), largest=largest)

    def __call__(self, logits_GV: Tensor, masks_GB: Tensor, out_GV: Tensor) -> None:
        """Write masked float32 logits to ``out_GV``; all tensors must be contiguous."""
        record = self._record
        record["logits"], record["masks"] = address(logits_GV), address(masks_GB)
        record["out"], record["num_bytes"] = address(out_GV), masks_GB.shape[1]
        record["rows"], record["vocabulary"] = logits_GV.shape
        self._kernel.run(record)
