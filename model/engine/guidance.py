"""What the grammars of a step's answers allow, applied to its logits.

The masks are computed on a thread of their own while the decoder runs, and applied to all rows at
once, guided and not.

Shape suffixes: S sequences sampled in the step, G those with a grammar, V vocabulary, B its bytes
in a mask (eight tokens each).
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from model.engine.logits_processors import LARGEST
from model.engine.sequence import Sequence

FORBIDDEN = 3e38  # taken from a forbidden logit; a temperature makes minus infinity of it


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
        # For each byte of a mask, eight bytes: 1 where it forbids the token.
        self._forbidden = (bits == 0).to(torch.uint8).view(torch.int64).flatten().to(device)
        # Made once: the system hands out fresh memory of this size page by page, which takes longer
        # than what is computed in it.
        self._words = torch.empty(rows * self._num_bytes, dtype=torch.int64, device=device)
        self._floats = torch.empty(rows, vocabulary, device=device)
        self._masked = torch.empty(rows, vocabulary, device=device)
        self._pool = ThreadPoolExecutor(1, "guidance")
        self._rows: list[int] = []
        self._filled: Future[Tensor] | None = None

    def begin(self, sequences: Rows[Sequence]) -> None:
        """Start computing the masks of the sequences that will be sampled."""
        self._rows = [i for i, s in enumerate(sequences) if s.guide is not None]
        self._filled = None
        if self._rows:
            self._filled = self._pool.submit(self._fill, [sequences[i] for i in self._rows])

    def apply(self, logits_SV: Tensor) -> Tensor:
        """The logits, with those that a row's grammar forbids below all others."""
        if self._filled is None:
            return logits_SV
        mask_GB = self._filled.result().to(logits_SV.device)
        count = len(mask_GB)
        words_W, floats_GV = self._words[: mask_GB.numel()], self._floats[:count]
        torch.index_select(self._forbidden, 0, mask_GB.flatten().int(), out=words_W)
        bits_GV = words_W.view(count, -1).view(torch.uint8)[:, : self._vocabulary]
        torch.mul(bits_GV, FORBIDDEN, out=floats_GV)
        whole = count == len(logits_SV)
        # Whatever the weights: nothing that is allowed is NaN or as low as what is not.
        logits_GV = self._masked[:count]
        torch.nan_to_num(
            logits_SV if whole else logits_SV[self._rows],
            *(-LARGEST, LARGEST, -LARGEST),
            out=logits_GV,
        )
        logits_GV.clamp_(-LARGEST, LARGEST).sub_(floats_GV)
        if whole:
            return logits_GV
        logits_SV = logits_SV.clone()
        logits_SV[self._rows] = logits_GV
        return logits_SV

    def _fill(self, sequences: list[Sequence]) -> Tensor:
        mask_GB = torch.zeros(len(sequences), self._num_bytes, dtype=torch.uint8)
        for row_B, sequence in zip(mask_GB, sequences, strict=True):
            assert sequence.guide is not None
            only = sequence.guide.fill(row_B.data_ptr(), self._num_bytes)
            if only is not None:
                row_B[only // 8] = 1 << only % 8
        return mask_GB
