"""What the grammars of a step's answers allow, applied to its logits.

The masks are computed once the decoder has been set to work: a GPU is busy with it meanwhile. Where
the decoder runs on the CPU every core is its own, and a thread that computed masks beside it would
cost more, by handing over, than they do. They are applied to all rows at once, guided and not.

Shape suffixes: S sequences sampled in the step, G those with a grammar, V vocabulary, B its bytes
in a mask, C the eight tokens of one.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from llguidance import LLExecutor
from torch import Tensor

from model.engine.logits_processors import LARGEST
from model.engine.sequence import Sequence

FORBIDDEN = 3e38  # below it no logit is


class Guidance:
    """Masks of a step's guided sequences.

    Args:
        rows: most sequences in a step.
        vocabulary: size of the logits' rows.
        device: where they are.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._num_bytes = -(-vocabulary // 32) * 4  # llguidance fills words of 32 bits
        bits = torch.arange(256)[:, None] >> torch.arange(8)[None, :] & 1
        # For each byte of a mask, what its eight logits may be at most.
        self._highest = torch.where(bits == 1, FORBIDDEN, -FORBIDDEN).to(device)
        # Made once: the system hands out fresh memory of this size page by page, which takes longer
        # than what is computed in it.
        self._limits = torch.empty(rows * self._num_bytes, 8, device=device)
        self._masked = torch.empty(rows, vocabulary, device=device)
        self._mask = torch.empty(rows, self._num_bytes, dtype=torch.uint8)
        self._executor = LLExecutor(1)

    def apply(self, logits_SV: Tensor, sequences: Rows[Sequence]) -> Tensor:
        """The logits, with those that a row's grammar forbids below all others."""
        rows = [i for i, s in enumerate(sequences) if s.guide is not None]
        if not rows:
            return logits_SV
        mask_GB = self._fill([sequences[i] for i in rows]).to(logits_SV.device)
        count, whole = len(mask_GB), len(mask_GB) == len(logits_SV)
        limits_BC = self._limits[: mask_GB.numel()]
        torch.index_select(self._highest, 0, mask_GB.flatten().int(), out=limits_BC)
        # Whatever the weights: nothing that is allowed is NaN or as low as what is not.
        logits_GV = self._masked[:count]
        torch.nan_to_num(
            logits_SV if whole else logits_SV[rows],
            *(-LARGEST, LARGEST, -LARGEST),
            out=logits_GV,
        )
        limits_GV = limits_BC.view(count, -1)[:, : self._vocabulary]
        torch.minimum(logits_GV, limits_GV, out=logits_GV)
        if whole:
            return logits_GV
        logits_SV = logits_SV.clone()
        logits_SV[rows] = logits_GV
        return logits_SV

    def _fill(self, sequences: list[Sequence]) -> Tensor:
        mask_GB = self._mask[: len(sequences)]
        matchers = []
        for row, sequence in enumerate(sequences):
            guide = sequence.guide
            assert guide is not None
            if guide.forced is None and guide.error is None:  # an error ends the answer
                matchers.append((guide.matcher, row))
                continue
            mask_GB[row] = 0
            if guide.forced is not None:
                mask_GB[row, guide.forced // 8] = 1 << guide.forced % 8
        if matchers:
            self._executor.unsafe_compute_mask_ptr(
                matchers, mask_GB.data_ptr(), self._num_bytes, len(sequences)
            )
        return mask_GB
