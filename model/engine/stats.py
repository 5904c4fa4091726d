"""Statistics of the engine. Plain values; does not import torch.

The engine thread writes them and other threads read them without locks: single numbers are atomic, and
counts may be one step apart.
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
    """A histogram of durations.

    Attributes:
        counts: observations in each bucket; ``SECONDS`` are the upper bounds, and the last bucket
            has none.
        total: sum of all durations, in seconds.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Add a duration."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds


@dataclass
class Totals:
    """Counters since the start.

    Attributes:
        finished: answers by finish reason, including ``abort`` and ``error``.
        prompt_tokens: of all started answers.
        cached_tokens: those of ``prompt_tokens`` from the prefix cache.
        generated_tokens: of all answers.
        forced_tokens: those of ``generated_tokens`` from jump-ahead.
        guessed_tokens, guessed_right: tokens guessed by prompt lookup, and those that were right.
        failed_steps: steps of the decoder or the vision tower that raised.
        ttft: from a request's arrival to the first token of each answer.
        itl: between tokens of one answer.
        e2e: from a request's arrival to the end of each answer that finished.
        queued: from a request's arrival to an answer's first step.
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
        """Set all counters to zero."""
        vars(self).update(vars(Totals()))


@dataclass(frozen=True)
class Diagnostics:
    """The implementations an engine uses and what it holds, for the log and to find leaks.

    Attributes:
        decoder, kv_cache: class names, which show whether the fast ones are used.
        graph_rows: batch sizes with CUDA graphs.
        sequences: waiting or running sequences.
        blocks_used: KV blocks that they hold.
        requests: open generations; this and the following are set only by ``AsyncEngine``.
        in_flight: sequences in flight.
        in_flight_tokens, in_flight_bytes: their footprint.
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
        """Whether the engine holds nothing for any request."""
        held = (self.sequences, self.blocks_used, self.requests)
        return not any((*held, self.in_flight, self.in_flight_tokens, self.in_flight_bytes))


@dataclass(frozen=True)
class Stats:
    """Current state of the engine, and its totals.

    Attributes:
        running, waiting: number of sequences.
        blocks_used, blocks_free, blocks_cached: number of KV blocks; cached ones have a prefix hash,
            and are used, or free and evicted when needed.
        block_size: tokens in a block.
        preemptions: sequences that lost their blocks and were recomputed.
        regime_recomputes: sequences recomputed because their rope regime changed.
        images_computed: images computed by the vision tower.
        embedding_hits: images whose embedding was cached.
        embedding_bytes: size of the cached embeddings.
        totals: counters since the start.
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
