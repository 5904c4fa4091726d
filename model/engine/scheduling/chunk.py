"""What a step computes of one sequence."""

from __future__ import annotations

from dataclasses import dataclass

from model.engine.scheduling.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens of a sequence to compute in a step: positions ``start`` to ``end``, and a guess.

    Attributes:
        guess: guessed next tokens, verified in the same step.
    """

    sequence: Sequence
    start: int
    end: int
    guess: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.end - self.start + len(self.guess)

    @property
    def token_ids(self) -> list[int]:
        """The tokens."""
        return [*self.sequence.token_ids[self.start : self.end], *self.guess]

    @property
    def num_sampled(self) -> int:
        """Number of tokens that the step samples, if the guess is right."""
        return 1 + len(self.guess) if self.end == len(self.sequence) else 0

    @property
    def decodes(self) -> bool:
        """Whether its sequence is decoding and samples in this step."""
        return self.num_sampled > 0 and self.sequence.is_decoding

    @property
    def is_text_token(self) -> bool:
        """Whether it is a single text token, not an image position."""
        return len(self) == 1 and self.sequence.token_ids[self.start] >= 0


def sampled_tokens(chunks: list[Chunk]) -> list[int]:
    """Which of a step's packed tokens have sampled successors."""
    sampled: list[int] = []
    end = 0
    for chunk in chunks:
        end += len(chunk)
        sampled += range(end - chunk.num_sampled, end)
    return sampled
