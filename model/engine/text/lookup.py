"""Prompt lookup: guesses that the last tokens continue as at their previous occurrence.

This works well for answers that quote, edit or repeat the prompt or themselves; one step then verifies
many guessed tokens.
"""

from __future__ import annotations

GRAM = 3  # number of last tokens to look up
FIRST_GUESS = 4  # tokens; doubled if all are right
LONGEST_GUESS = 31
LONGEST_PAUSE = 64  # steps without guesses after wrong ones
INDEXED = 32_768  # last tokens of the prompt that are indexed
AT_ONCE = 2048  # tokens indexed per step, to bound its time


class Lookup:
    """The guesses of one answer.

    Args:
        prompt_len: tokens before the answer.
    """

    def __init__(self, prompt_len: int) -> None:
        self._goes_on_at: dict[
            tuple[int, ...], int
        ] = {}  # n-gram to the position after its last occurrence
        self._indexed = max(0, prompt_len - INDEXED)
        self._length = FIRST_GUESS
        self._misses = 0
        self._pause = 0

    def guess(self, token_ids: list[int], most: int) -> list[int]:
        """Guess at most ``most`` next tokens; empty without a previous occurrence.

        Args:
            token_ids: prompt and answer so far; must only grow.
        """
        self._index(token_ids)
        if self._pause:
            self._pause -= 1
            return []
        at = self._goes_on_at.get(tuple(token_ids[-GRAM:]))
        if at is None:
            return []
        period = len(token_ids) - at  # past the end, the guess repeats
        guessed: list[int] = []
        for i in range(min(self._length, most)):
            token_id = token_ids[at + i % period]
            if token_id < 0:
                break  # image positions cannot be generated
            guessed.append(token_id)
        return guessed

    def learn(self, guessed: int, right: int) -> None:
        """Guess more tokens after right guesses, fewer after wrong ones, and pause after several."""
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
        """Index n-grams, except the last one, which is looked up."""
        last = min(len(token_ids) - GRAM, self._indexed + AT_ONCE)
        for at in range(self._indexed, last):
            self._goes_on_at[tuple(token_ids[at : at + GRAM])] = at + GRAM
        self._indexed = max(self._indexed, last)
