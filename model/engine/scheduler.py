"""Which tokens are computed in the next step: decode first, then prefill up to a budget.

First come, first served; a sequence is admitted when blocks for all its tokens are free, and the
youngest is preempted (recomputed later) when the running ones need more. Knows neither tensors nor
texts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from model.engine.block_manager import BlockManager
from model.engine.config import EngineConfig
from model.engine.sequence import Sequence, Status
from model.phi3v.rope import LongRope


@dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence to compute in a step: positions ``start`` to ``end``."""

    sequence: Sequence
    start: int
    end: int

    @property
    def samples(self) -> bool:
        """Whether the step yields the sequence's next token."""
        return self.end == len(self.sequence)


class Scheduler:
    """The waiting queue, the running sequences and their blocks."""

    def __init__(self, config: EngineConfig, blocks: BlockManager, rope: LongRope) -> None:
        self._config = config
        self._rope = rope
        self.blocks = blocks
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission
        self.num_preemptions = 0
        self.num_crossings = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED
        sequence.image_embedding = None
        self.blocks.release(sequence.block_table)

    def schedule(self) -> list[Chunk]:
        """The next step's chunks; empty only when there is no work."""
        for sequence in list(self.running):
            self._choose_regime(sequence)
            self._make_room(sequence)
        chunks = [
            Chunk(sequence, sequence.num_computed, len(sequence))
            for sequence in self.running
            if sequence.num_pending == 1
        ]
        budget = self._config.prefill_chunk
        for sequence in self.running:
            if sequence.num_pending > 1 and budget > 0:
                budget -= self._prefill(sequence, budget, chunks)
        while budget > 0 and self._admit():
            budget -= self._prefill(self.running[-1], budget, chunks)
        return chunks

    def _prefill(self, sequence: Sequence, budget: int, chunks: list[Chunk]) -> int:
        count = min(sequence.num_pending, budget)
        chunks.append(Chunk(sequence, sequence.num_computed, sequence.num_computed + count))
        return count

    def _choose_regime(self, sequence: Sequence) -> None:
        """Set the rope regime of the sequence's length; keys of another regime are recomputed."""
        regime = self._rope.regime(len(sequence))
        if regime is not sequence.regime:
            sequence.regime = regime
            if sequence.num_computed:
                self.num_crossings += 1
                sequence.reset()

    def _make_room(self, sequence: Sequence) -> None:
        """Get a block for the newest token, preempting the youngest (perhaps itself) for it."""
        while sequence.status is Status.RUNNING:
            if self.blocks.can_grow(sequence.block_table, len(sequence)):
                self.blocks.grow(sequence.block_table, len(sequence))
                return
            self._preempt(self.running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence.block_table)
        sequence.reset()
        sequence.status = Status.WAITING
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _admit(self) -> bool:
        """Move the oldest waiting sequence to the running ones, if it fits."""
        if not self.waiting or len(self.running) >= self._config.max_num_seqs:
            return False
        sequence = self.waiting[0]
        if not self.blocks.can_grow(sequence.block_table, len(sequence)):
            return False
        self.waiting.popleft()
        self._choose_regime(sequence)
        self.blocks.grow(sequence.block_table, len(sequence))
        sequence.status = Status.RUNNING
        self.running.append(sequence)
        return True
