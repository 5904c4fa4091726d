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

from model.engine.sequence import Sequence


class Guidance:
    """Masks of a step's guided sequences.

    Args:
        vocabulary: rows of the logits.
        device: where they are.
    """

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._num_bytes = -(-vocabulary // 32) * 4  # llguidance fills words of 32 bits
        bits = torch.arange(256)[:, None] >> torch.arange(8)[None, :] & 1
        # What each byte of a mask adds to its eight logits.
        self._added = torch.where(bits == 1, 0.0, -torch.inf).to(device)
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
        """The logits with minus infinity where a row's grammar forbids the token."""
        if self._filled is None:
            return logits_SV
        mask_GB = self._filled.result().to(logits_SV.device)
        added_GV = self._added[mask_GB.long()].flatten(1)[:, : self._vocabulary]
        if len(self._rows) == len(logits_SV):
            return logits_SV + added_GV
        logits_SV = logits_SV.clone()
        logits_SV[self._rows] += added_GV
        return logits_SV

    def _fill(self, sequences: list[Sequence]) -> Tensor:
        mask_GB = torch.zeros(len(sequences), self._num_bytes, dtype=torch.uint8)
        for row_B, sequence in zip(mask_GB, sequences, strict=True):
            assert sequence.guide is not None
            only = sequence.guide.fill(row_B.data_ptr(), self._num_bytes)
            if only is not None:
                row_B[only // 8] = 1 << only % 8
        return mask_GB
