"""The server with faults that requests name by their seed, for what no client can provoke."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch

from model.engine.execution.runner import Runner
from model.engine.scheduling.chunk import Chunk
from model.errors import EngineDeadError
from model.phi3v.inputs.processing import Processor
from server.cli import main
from server.images.decode_pool import DecodePool

PREFILL, DECODE, MEMORY, KILL, SLOW = range(7001, 7006)
STEP = 0.3  # seconds that a step of a slow request takes at least
SECRET = "/secret/path/of/the/server"
run = Runner.run
draft = Processor.draft


def faulty_run(self: Runner, chunks: list[Chunk]) -> torch.Tensor:
    for chunk in chunks:
        seed, begun = chunk.sequence.params.seed, chunk.sequence.num_output > 2
        if seed == PREFILL or (seed == DECODE and begun):
            raise RuntimeError(SECRET)
        if seed == MEMORY:
            raise torch.OutOfMemoryError(f"CUDA out of memory. {SECRET}")
        if seed == KILL and begun:
            raise SystemExit(SECRET)
        if seed == SLOW:
            time.sleep(STEP)
    return run(self, chunks)


def faulty_draft(self: Processor, messages: Any, max_tokens: int, keep: int | None = None) -> Any:
    if "FAULT" in messages[0].text:
        raise MemoryError(SECRET)
    if "BUSY" in messages[0].text:
        raise EngineDeadError()  # a 503, though the server goes on
    return draft(self, messages, max_tokens, keep)


def faulty_start(self: DecodePool) -> None:
    raise RuntimeError(f"first line\nsecond line {SECRET}")


if __name__ == "__main__":
    Runner.run = faulty_run  # type: ignore[method-assign]
    Processor.draft = faulty_draft  # type: ignore[method-assign]
    if "FAULTY_LOADING" in os.environ:
        DecodePool.start = faulty_start  # type: ignore[method-assign]
    sys.exit(main())
