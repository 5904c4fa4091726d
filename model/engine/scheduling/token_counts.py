"""Token counts of a sequence, updated from step to step.

Shape suffix: V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.phi3v.transfer import to_device


class Counts:
    """Token counts of a growing sequence.

    Args:
        start: position of the first token to count.
    """

    def __init__(self, start: int) -> None:
        self._counted = start
        self._counts_V: Tensor | None = None

    def __call__(self, token_ids: list[int], logits_V: Tensor) -> Tensor:
        """The counts ``(V,)``, in the dtype and on the device of the logits; adds only new tokens."""
        if self._counts_V is None:
            self._counts_V = torch.zeros_like(logits_V)
        new = [token_id for token_id in token_ids[self._counted :] if token_id >= 0]
        ids = to_device(torch.tensor(new, dtype=torch.int64), logits_V.device)
        self._counts_V.index_add_(0, ids, torch.ones_like(ids, dtype=logits_V.dtype))
        self._counted = len(token_ids)
        return self._counts_V
