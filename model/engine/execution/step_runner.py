"""Computes a step: decoder, token masks, sampler; retries a failed step to find the faulty chunks.

Nothing here changes a sequence, so a step can be retried.
"""

from __future__ import annotations

import logging
import traceback
from itertools import islice

import torch

from model.engine.execution.device_clock import DeviceClock, StepTimer
from model.engine.execution.runner import Runner
from model.engine.sampling.drawing import Draw
from model.engine.sampling.sampler import Sample, sample
from model.engine.sampling.token_masks import TokenMasks
from model.engine.scheduling.chunk import Chunk
from model.phi3v.transfer import to_device

logger = logging.getLogger(__name__)

Computed = tuple[Chunk, list[Sample]]


class StepRunner:
    """Runs the decoder and the sampler.

    Args:
        runner: runs the decoder.
        token_masks: the grammars' masks.
        draw: chooses tokens.
        clock: of the device.
    """

    def __init__(
        self, runner: Runner, token_masks: TokenMasks, draw: Draw, clock: DeviceClock
    ) -> None:
        self._runner = runner
        self._token_masks = token_masks
        self._draw = draw
        self._timer = StepTimer(clock)

    def __call__(self, chunks: list[Chunk]) -> tuple[list[Computed], list[tuple[Chunk, Exception]]]:
        """Compute the chunks; returns them with their samples, and failed ones with their exceptions.

        Sequences with late grammars get no samples. A failed step is retried chunk by chunk, which
        also takes less memory.

        Raises:
            torch.AcceleratorError: the device is unusable until the process restarts.
        """
        result = self._attempt(chunks)
        if not isinstance(result, Exception):
            return result, []
        if len(chunks) == 1:
            return [], [(chunks[0], result)]
        computed: list[Computed] = []
        failed: list[tuple[Chunk, Exception]] = []
        for chunk in chunks:
            alone = self._attempt([chunk])
            if isinstance(alone, Exception):
                failed.append((chunk, alone))
            else:
                computed += alone
        return computed, failed

    @property
    def seconds(self) -> float:
        """Seconds of the newest step; see ``StepTimer``. Read it right after the step."""
        return self._timer.seconds()

    def _attempt(self, chunks: list[Chunk]) -> list[Computed] | Exception:
        """Compute the chunks once; returns the exception, after logging it, if that fails."""
        rows = [(chunk.sequence, ahead) for chunk in chunks for ahead in range(chunk.num_sampled)]
        try:
            self._timer.begin()
            logits_SV = self._runner.run(chunks)
            self._timer.launched()  # but for the sampler, whose time prefill doesn't change
            self._token_masks.wait([sequence for sequence, _ in rows])
            in_time = [i for i, (sequence, _) in enumerate(rows) if not sequence.is_late]
            if len(in_time) < len(rows):
                rows = [rows[i] for i in in_time]
                row_S = to_device(torch.tensor(in_time, dtype=torch.int64), logits_SV.device)
                logits_SV = logits_SV.index_select(0, row_S)
            sampled, ahead = [sequence for sequence, _ in rows], [number for _, number in rows]
            samples = (
                sample(logits_SV, sampled, self._token_masks, ahead, self._draw) if rows else []
            )
        except torch.AcceleratorError:
            raise
        except Exception as error:
            sequences = "1 sequence" if len(chunks) == 1 else f"{len(chunks)} sequences"
            logger.exception("a step of %s failed", sequences)
            # The traceback's frames hold the step's tensors, whose memory the retry may need.
            traceback.clear_frames(error.__traceback__)
            return error.with_traceback(None)
        left = iter(samples)
        return [
            (chunk, [] if chunk.sequence.is_late else list(islice(left, chunk.num_sampled)))
            for chunk in chunks
        ]
