"""A failed step is tried again, chunk by chunk, with the memory that it has given back."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from model.engine.execution.device_clock import HostClock
from model.engine.execution.step_runner import StepRunner


class TooLarge:
    """A runner whose memory holds one chunk."""

    def __init__(self) -> None:
        self.held: list[weakref.ref[Tensor]] = []
        self.alive: list[int] = []

    def run(self, chunks: list[Any]) -> Tensor:
        self.alive.append(sum(ref() is not None for ref in self.held))
        hidden = torch.zeros(len(chunks), 4)
        self.held.append(weakref.ref(hidden))
        if len(chunks) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden


def test_a_retry_has_the_memory_of_the_failed_step() -> None:
    runner: Any = TooLarge()
    masks: Any = SimpleNamespace(wait=lambda sequences: None)
    draw: Any = None
    sequence = SimpleNamespace(is_late=False)
    chunks: Any = [SimpleNamespace(sequence=sequence, num_sampled=0) for _ in range(2)]
    computed, failed = StepRunner(runner, masks, draw, HostClock())(chunks)
    assert [chunk for chunk, _ in computed] == chunks
    assert not failed
    assert runner.alive == [0, 0, 0]
