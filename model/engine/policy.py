"""Which optimizations the engine may use.

By default a sequence is computed in whatever way is fastest in its current batch, so the last bits of
results may depend on the batch. In deterministic mode results are bit-identical regardless of
batching, at the cost of speed.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.engine.config import EngineConfig
from model.engine.grammars.follower import STALL_SECONDS

MOST_TOGETHER = 32  # tokens that one step may add to a sequence
GUESSES = (3, 7, 15)  # tokens that a sequence may guess in a step with a CUDA graph
MOST_VERIFIED = 256  # tokens of such a step; more are no cheaper than without a graph
GRAMMAR_PATIENCE = 0.05  # seconds that a step waits for grammars, pausing all its streams


@dataclass(frozen=True)
class Policy:
    """The optimizations that the options allow.

    Attributes:
        prefix_caching: reuse cached blocks for prompts that begin alike.
        shared_prompts: compute the prompt once for all answers of a request.
        prompt_lookup: guess tokens and verify several per step.
        jump_ahead: append tokens that a grammar forces without a step for each.
        most_together: maximum number of pending tokens that count as decoding, not as prefill.
        fixed_chunks: always cut prompts at multiples of ``prefill_chunk``, and compute all other
            tokens one at a time.
        fixed_rows: if positive, pad batches of single tokens to this many rows, and compute chunks of
            prompts alone.
        graph_sizes: sizes of CUDA graphs: numbers of sequences, and of tokens for each.
        single_images: run the vision tower on one image at a time.
        grammar_patience: maximum seconds that a step waits for grammars; sequences with later
            grammars skip the step.
    """

    prefix_caching: bool
    shared_prompts: bool
    prompt_lookup: bool
    jump_ahead: bool
    most_together: int
    fixed_chunks: bool
    fixed_rows: int
    graph_sizes: tuple[tuple[int, int], ...]
    single_images: bool
    grammar_patience: float

    @classmethod
    def of(cls, config: EngineConfig) -> Policy:
        """The policy of an engine with these options."""
        rows = config.max_num_seqs
        if config.deterministic:
            return cls(
                prefix_caching=False,  # a hit changes where the rest is cut
                shared_prompts=False,
                prompt_lookup=False,
                jump_ahead=False,
                most_together=1,  # after a preemption tokens are recomputed one at a time
                fixed_chunks=True,
                fixed_rows=rows,
                graph_sizes=((rows, 1),),
                single_images=True,
                # Long enough for every grammar: skipping a step would change the chunks.
                grammar_patience=2 * STALL_SECONDS,
            )
        return cls(
            prefix_caching=config.prefix_caching,
            shared_prompts=True,
            prompt_lookup=config.prompt_lookup,
            jump_ahead=config.jump_ahead,
            most_together=MOST_TOGETHER,
            fixed_chunks=False,
            fixed_rows=0,
            graph_sizes=graph_sizes(rows),
            single_images=False,
            grammar_patience=GRAMMAR_PATIENCE,
        )


def graph_sizes(max_rows: int) -> tuple[tuple[int, int], ...]:
    """Sizes close enough together that few rows of a step are unused."""
    rows = [*(n for n in (1, 2, 4) if n < max_rows), *range(8, max_rows, 8), max_rows]
    verifying = [(n, 1 + guess) for n in rows for guess in GUESSES]
    return (
        *((n, 1) for n in rows),
        *((n, tokens) for n, tokens in verifying if n * tokens <= MOST_VERIFIED),
    )
