"""Applies the token masks of grammars to a step's logits.

The grammars' processes compute the masks while the decoder runs.

Shape suffixes: S sequences sampled in the step, G those with a grammar, V vocabulary, B its bytes
in a mask.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from model.engine.grammars.protocol import mask_bytes
from model.engine.sampling.logits_processors import LARGEST
from model.engine.scheduling.sequence import Sequence
from model.phi3v.transfer import to_device

logger = logging.getLogger(__name__)

FORBIDDEN = 3e38  # beyond any processed logit
MaskKernel = Callable[[Tensor, Tensor, Tensor], None]


class TokenMasks:
    """The token masks of a step's sequences.

    Args:
        rows: maximum number of sequences in a step.
        vocabulary: number of logits.
        device: of the logits.
        patience: maximum seconds that a step waits for masks.
    """

    def __init__(self, rows: int, vocabulary: int, device: torch.device, patience: float) -> None:
        self._patience = patience
        num_bytes = mask_bytes(vocabulary)
        # Allocated once, because page faults in new memory take longer than filling it.
        self._masks = torch.empty(rows, num_bytes, dtype=torch.uint8)
        self._kernel = make_mask_kernel(rows, num_bytes, device)

    def wait(self, sequences: Rows[Sequence]) -> None:
        """Wait for the sequences' masks, at most ``patience``; missing ones are late."""
        until = time.monotonic() + self._patience
        states = [s.grammar_state for s in sequences if s.grammar_state is not None]
        for state in states:
            state.wait_for_mask(until)
        for state in states:
            state.look()

    def apply(self, logits_SV: Tensor, sequences: Rows[Sequence]) -> Tensor:
        """Set forbidden logits of rows with a grammar below all others.

        Allowed logits are clamped and NaN replaced, so that they are always higher. Changes the logits
        in place, unless log probabilities are requested.
        """
        rows = [i for i, s in enumerate(sequences) if s.grammar_state is not None]
        if not rows:
            return logits_SV
        masks_GB = self._fill([sequences[i] for i in rows])
        if any(sequence.params.logprobs is not None for sequence in sequences):
            logits_SV = logits_SV.clone()
        if len(rows) == len(logits_SV):
            self._kernel(logits_SV, masks_GB, logits_SV)
        else:
            row_G = to_device(torch.tensor(rows), logits_SV.device)
            logits_GV = logits_SV.index_select(0, row_G)
            self._kernel(logits_GV, masks_GB, logits_GV)
            logits_SV.index_copy_(0, row_G, logits_GV)
        return logits_SV

    def _fill(self, sequences: list[Sequence]) -> Tensor:
        masks_GB = self._masks[: len(sequences)]
        masks = masks_GB.numpy()
        for row, sequence in enumerate(sequences):
            state = sequence.grammar_state
            assert state is not None
            if state.forced is None and state.mask is not None:
                masks[row] = state.mask
                continue
            masks[row] = 0  # also for a sequence that ends with an error
            if state.forced is not None:
                masks[row, state.forced // 8] = 1 << state.forced % 8
        return masks_GB


def make_mask_kernel(rows: int, num_bytes: int, device: torch.device) -> MaskKernel:
    """Create a kernel ``(logits (G, V), masks on the CPU (G, B), out (G, V)) -> None``.

    Compiled on the CPU if possible.
    """
    highest = highest_by_byte()
    if device.type == "cpu":
        try:
            from model.cpu.token_masks import CpuMaskKernel
        except ImportError as error:
            logger.warning("using uncompiled token masks, which is slower: %s", error)
        else:
            return CpuMaskKernel(highest, LARGEST)
    return TorchMaskKernel(highest.to(device), rows * num_bytes)


def highest_by_byte() -> Tensor:
    """Upper limits of the eight logits of each byte of a mask, ``(256, 8)``."""
    bits = torch.arange(256)[:, None] >> torch.arange(8)[None, :] & 1
    return torch.where(bits == 1, FORBIDDEN, -FORBIDDEN)


class TorchMaskKernel:
    """Applies masks with torch's operators.

    Args:
        highest: see ``highest_by_byte``.
        most_bytes: maximum size of a step's masks.
    """

    def __init__(self, highest: Tensor, most_bytes: int) -> None:
        self._highest = highest
        self._limits = torch.empty(most_bytes, 8, device=highest.device)

    def __call__(self, logits_GV: Tensor, masks_GB: Tensor, out_GV: Tensor) -> None:
        """See ``make_mask_kernel``."""
        limits = self._limits[: masks_GB.numel()]
        indices = to_device(masks_GB, limits.device).flatten().int()
        torch.index_select(self._highest, 0, indices, out=limits)
        torch.nan_to_num(logits_GV, -LARGEST, out=out_GV).clamp_(-LARGEST, LARGEST)
        limits_GV = limits.view(len(masks_GB), -1)[:, : logits_GV.shape[1]]
        torch.minimum(out_GV, limits_GV, out=out_GV)
