"""What the engine is doing and has done, in numbers. Plain values; imports no torch.

Written by the engine's thread and read by others: single numbers are never half written, and a
reader can live with a count that is one step behind another.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0
)  # fmt: skip


@dataclass
class Histogram:
    """How often durations fell between bounds.

    Attributes:
        counts: observations up to each bound of ``SECONDS`` and above the one before, then those
            above the last.
        total: sum of all, in seconds.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds


@dataclass
class Totals:
    """What has happened since the start.

    Attributes:
        finished: answers by finish reason, with ``abort`` and ``error`` for those cut short.
        prompt_tokens: of the answers that were begun; ``cached_tokens`` of them were found computed.
        generated_tokens: of all answers; ``forced_tokens`` of them were forced by a grammar and
            computed together with others, and ``guessed_right`` of ``guessed_tokens`` by lookup.
        failed_steps: steps of the decoder or the vision tower that raised.
        ttft: from a request's arrival to the first token of each answer.
        itl: between tokens of one answer.
        e2e: from a request's arrival to the end of each answer that was not cut short.
        queued: from a request's arrival to the first step that computes an answer.
    """

    finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0
    guessed_tokens: int = 0
    guessed_right: int = 0
    failed_steps: int = 0
    ttft: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)
    queued: Histogram = field(default_factory=Histogram)

    def reset(self) -> None:
        """Begin anew."""
        vars(self).update(vars(Totals()))


@dataclass(frozen=True)
class Diagnostics:
    """What an engine runs on, and what it holds at a moment: for the log, and to find leaks.

    Attributes:
        decoder, kv_cache: names of their classes, which tell whether the fast ones were chosen.
        graph_rows: numbers of rows that CUDA graphs were captured for.
        sequences: waiting or running.
        blocks_used: KV blocks that they hold.
        requests: whose answers somebody may still read; of an ``AsyncEngine`` alone, like what follows.
        in_flight: sequences being prepared, waiting or running.
        in_flight_tokens, in_flight_bytes: what these are counted with.
    """

    decoder: str
    kv_cache: str
    graph_rows: tuple[int, ...]
    sequences: int
    blocks_used: int
    requests: int = 0
    in_flight: int = 0
    in_flight_tokens: int = 0
    in_flight_bytes: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held for anybody."""
        held = (self.sequences, self.blocks_used, self.requests)
        return not any((*held, self.in_flight, self.in_flight_tokens, self.in_flight_bytes))


@dataclass(frozen=True)
class Stats:
    """The engine at a moment, and its totals.

    Attributes:
        running, waiting: sequences.
        blocks_used, blocks_free, blocks_cached: KV blocks; cached ones are filed under a prefix
            hash, and may be free (their memory is taken when needed) or used.
        block_size: tokens in a block.
        preemptions: sequences that had to give up their blocks and be computed again.
        regime_recomputes: sequences computed again because they crossed the rope boundary.
        images_computed: images that went through the vision tower.
        embedding_hits: images whose embedding was still there.
        embedding_bytes: memory of the embeddings kept.
        totals: since the start.
    """

    running: int
    waiting: int
    blocks_used: int
    blocks_free: int
    blocks_cached: int
    block_size: int
    preemptions: int
    regime_recomputes: int
    images_computed: int
    embedding_hits: int
    embedding_bytes: int
    totals: Totals
