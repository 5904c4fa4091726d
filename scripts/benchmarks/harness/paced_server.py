"""A server whose model takes a card's time for each step: ``python -m ...paced_server STEPS FLAGS``.

Only the forward pass and the sampler are replaced: each sequence that decodes gets a token ``STEPS`` times
a second. Scheduler, acceptance, detokenizer and everything of the server run as always.
"""

from __future__ import annotations

import sys
import time
from itertools import islice
from typing import Any
from unittest.mock import patch

from model.engine.sampling.sampler import Sample
from model.engine.scheduling.chunk import Chunk
from server.cli import main

PROSE = 500  # ids of words and pieces of words, to be generated in turn


class PacedSteps:
    """Takes the place of ``StepRunner``."""

    seconds_per_step = 0.0

    def __init__(self, *_: Any) -> None:
        self.seconds = 0.0
        self._next = 0.0

    def __call__(self, chunks: list[Chunk]) -> tuple[list[Any], list[Any]]:
        """Wait for the step's time, and sample words."""
        now = time.perf_counter()
        self._next = max(self._next + self.seconds_per_step, now)
        time.sleep(self._next - now)
        self.seconds = self.seconds_per_step
        return [(chunk, list(islice(_samples(chunk), chunk.num_sampled))) for chunk in chunks], []


def _samples(chunk: Chunk) -> Any:
    for number in range(chunk.num_sampled):
        yield Sample(PROSE + (len(chunk.sequence) + number) % PROSE)


if __name__ == "__main__":
    PacedSteps.seconds_per_step = 1 / float(sys.argv[1])
    with patch("model.engine.engine.StepRunner", PacedSteps):
        sys.exit(main(sys.argv[2:]))
