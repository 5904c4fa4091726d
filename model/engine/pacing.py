"""How much prefill a step takes on beside the sequences that are decoding.

A long prompt computed at once would stall every running stream; computed in crumbs it would take
for ever. A step with prefill may take ``STRETCH`` times as long as one without; longer when more
prompts wait than streams run, each weighing as much as ``PATIENCE`` streams.

What steps cost is learned as the engine runs: a line through (tokens, seconds) of recent steps.
"""

from __future__ import annotations

STRETCH = 2.25
PATIENCE = 4
SMALLEST_CHUNK = 16  # tokens; below this a step's fixed cost dominates
NEWEST = 0.1  # weight of the newest measurement


class Pacing:
    """The running estimate of what steps cost, and the budgets that follow.

    Args:
        prefill_chunk: most prefill tokens in a step.
        fixed: always grant that, whatever it costs (``--deterministic``).
    """

    def __init__(self, prefill_chunk: int, fixed: bool = False) -> None:
        self._prefill_chunk = prefill_chunk
        self._fixed = fixed
        self._steps = 0
        self._tokens = self._seconds = 0.0  # weighted means, then those of products
        self._tokens_tokens = self._tokens_seconds = 0.0

    def measured(self, tokens: int, seconds: float) -> None:
        """Learn from a step that computed ``tokens``."""
        self._steps += 1
        if self._steps == 1:
            return  # it finds nothing in memory that later ones find
        weight = max(NEWEST, 1 / (self._steps - 1))
        self._tokens += weight * (tokens - self._tokens)
        self._seconds += weight * (seconds - self._seconds)
        self._tokens_tokens += weight * (tokens * tokens - self._tokens_tokens)
        self._tokens_seconds += weight * (tokens * seconds - self._tokens_seconds)

    @property
    def _per_token(self) -> float:
        """Seconds that another token adds to a step: the line's slope, if its points tell it."""
        variance = self._tokens_tokens - self._tokens**2
        most = self._seconds / self._tokens  # of a line through the origin
        if variance < 1:
            return most
        slope = (self._tokens_seconds - self._tokens * self._seconds) / variance
        return min(max(slope, most / 20), most)

    def spare_seconds(self, num_decoding: int, num_prefilling: int) -> float | None:
        """How much longer than a decode step the next one may take; None if nobody is stalled."""
        if num_decoding == 0 or self._fixed or self._steps < 2:
            return None
        decode = self._seconds + self._per_token * (num_decoding - self._tokens)
        decode = max(decode, self._per_token * num_decoding)
        return decode * max(STRETCH - 1, PATIENCE * num_prefilling / num_decoding)

    def prefill_budget(self, num_decoding: int, num_prefilling: int) -> int:
        """Prefill tokens of the next step."""
        spare = self.spare_seconds(num_decoding, num_prefilling)
        if spare is None:
            return self._prefill_chunk
        tokens = int(spare / self._per_token) // SMALLEST_CHUNK * SMALLEST_CHUNK
        return min(max(tokens, SMALLEST_CHUNK), self._prefill_chunk)
