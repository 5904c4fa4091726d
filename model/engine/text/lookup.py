"""Guesses how an answer goes on: as it went on where its last tokens last stood.

Answers that quote, edit or repeat what is in the prompt or the answer itself are guessed right for
many tokens, which one step then verifies together. Knows nothing of models.
"""

from __future__ import annotations

GRAM = 3  # last tokens that are looked for
FIRST_GUESS = 4  # tokens; doubled when all are right
LONGEST_GUESS = 31
LONGEST_PAUSE = 64  # steps without a guess after wrong ones
INDEXED = 32_768  # of the prompt's tokens, from its end
AT_ONCE = 2048  # tokens indexed in one step, so that none takes long


class Lookup:
    """The guesses of one answer.

    Args:
        prompt_len: tokens before the answer.
    """

    def __init__(self, prompt_len: int) -> None:
        self._goes_on_at: dict[tuple[int, ...], int] = {}  # after these tokens, when last seen
        self._indexed = max(0, prompt_len - INDEXED)
        self._length = FIRST_GUESS
        self._misses = 0
        self._pause = 0

    def guess(self, token_ids: list[int], most: int) -> list[int]:
        """The next tokens, at most ``most``; none when there is nothing to go by.

        Args:
            token_ids: prompt and answer so far; it only ever grows.
        """
        self._index(token_ids)
        if self._pause:
            self._pause -= 1
            return []
        at = self._goes_on_at.get(tuple(token_ids[-GRAM:]))
        if at is None:
            return []
        period = len(token_ids) - at  # what goes on past the end begins again
        guessed: list[int] = []
        for i in range(min(self._length, most)):
            token_id = token_ids[at + i % period]
            if token_id < 0:
                break  # an image is never said
            guessed.append(token_id)
        return guessed

    def learn(self, guessed: int, right: int) -> None:
        """Guess more after right guesses, fewer after wrong ones, and for a while none at all."""
        if right == guessed:
            self._length = min(2 * self._length, LONGEST_GUESS)
            self._misses = 0
        elif right:
            self._length = right + 1
            self._misses = 0
        else:
            self._length = FIRST_GUESS
            self._misses += 1
            self._pause = min(2**self._misses, LONGEST_PAUSE)

    def _index(self, token_ids: list[int]) -> None:
        """Take note of tokens up to the last but one: the last ones are what is looked for."""
        last = min(len(token_ids) - GRAM, self._indexed + AT_ONCE)
        for at in range(self._indexed, last):
            self._goes_on_at[tuple(token_ids[at : at + GRAM])] = at + GRAM
        self._indexed = max(self._indexed, last)
