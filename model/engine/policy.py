"""Which shortcuts the engine may take.

By default a sequence is computed in whatever way is fastest in the batch that it happens to be in,
and results may differ in their last bits from batch to batch. In deterministic mode it is computed
in the same way in any batch, at the cost of speed.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.engine.config import EngineConfig
from model.engine.grammars.follower import STALL_SECONDS

MOST_TOGETHER = 32  # tokens that one step may add to a sequence
GRAMMAR_PATIENCE = 0.05  # seconds that a step waits for grammars, at most; all its streams pause


@dataclass(frozen=True)
class Policy:
    """What the options allow.

    Attributes:
        prefix_caching: whether a prompt starts from blocks of earlier ones that start alike.
        shared_prompts: whether one sequence computes the prompt for all answers of a request.
        prompt_lookup: whether tokens are guessed, and verified several in a step.
        jump_ahead: whether tokens that a grammar forces are appended without a step for each.
        most_together: most tokens that may come to a sequence at once and are still computed as
            decoding, not as a prompt.
        fixed_chunks: whether prompts are always cut at the same positions, ``prefill_chunk`` apart,
            and all other tokens computed one at a time.
        fixed_rows: when positive, sequences that compute one token are always computed in a batch of
            that many rows, and chunks of prompts alone.
        graph_rows: numbers of rows that CUDA graphs are captured for, ascending.
        single_images: whether each image goes through the vision tower alone.
        grammar_patience: seconds that a step waits for grammars at most; sequences whose grammar is
            later than that sit the step out.
    """

    prefix_caching: bool
    shared_prompts: bool
    prompt_lookup: bool
    jump_ahead: bool
    most_together: int
    fixed_chunks: bool
    fixed_rows: int
    graph_rows: tuple[int, ...]
    single_images: bool
    grammar_patience: float

    @classmethod
    def of(cls, config: EngineConfig) -> Policy:
        """The policy of an engine with these options."""
        rows = config.max_num_seqs
        if config.deterministic:
            return cls(
                prefix_caching=False,  # a hit changes how the rest is cut
                shared_prompts=False,
                prompt_lookup=False,
                jump_ahead=False,
                most_together=1,  # what is lost in a preemption comes singly again
                fixed_chunks=True,
                fixed_rows=rows,
                graph_rows=(rows,),
                single_images=True,
                # Long enough for every grammar: sitting a step out would change its chunks.
                grammar_patience=2 * STALL_SECONDS,
            )
        powers_of_two = [1 << exponent for exponent in range((rows - 1).bit_length())]
        return cls(
            prefix_caching=config.prefix_caching,
            shared_prompts=True,
            prompt_lookup=config.prompt_lookup,
            jump_ahead=config.jump_ahead,
            most_together=MOST_TOGETHER,
            fixed_chunks=False,
            fixed_rows=0,
            graph_rows=(*powers_of_two, rows),
            single_images=False,
            grammar_patience=GRAMMAR_PATIENCE,
        )
