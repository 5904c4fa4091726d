"""How much prefill a step takes on beside the sequences that are decoding.

A long prompt computed at once would stall every running stream; computed in crumbs it would take
for ever. A step with prefill may take ``STRETCH`` times as long as one without; longer when more
prompts wait than streams run, each weighing as much as ``PATIENCE`` streams. Needs the cost of a
step, which is measured as the engine runs.
"""

from __future__ import annotations

STRETCH = 2.25
PATIENCE = 4
SMALLEST_CHUNK = 16  # tokens; below this a step's fixed cost dominates
NEWEST = 0.2  # weight of the newest measurement


class Pacing:
    """Running estimates of what steps cost, and the budgets that follow.

    Args:
        prefill_chunk: most prefill tokens in a step.
        fixed: always grant that, whatever it costs (``--deterministic``).
    """

    def __init__(self, prefill_chunk: int, fixed: bool = False) -> None:
        self._prefill_chunk = prefill_chunk
        self._fixed = fixed
        self._decode_seconds: float | None = None
        self._token_seconds: float | None = None

    def measured(self, seconds: float, decode_tokens: int, prefill_tokens: int) -> None:
        """Learn from a step that took ``seconds``."""
        if prefill_tokens == 0:
            self._decode_seconds = _mixed(self._decode_seconds, seconds)
            return
        decode = (self._decode_seconds or 0) if decode_tokens else 0
        per_token = max(seconds - decode, seconds / 10) / prefill_tokens
        self._token_seconds = _mixed(self._token_seconds, per_token)

    def spare_seconds(self, num_decoding: int, num_prefilling: int) -> float | None:
        """How much longer than a decode step the next one may take; None if nobody is stalled."""
        if num_decoding == 0 or self._fixed or self._decode_seconds is None:
            return None
        return self._decode_seconds * max(STRETCH - 1, PATIENCE * num_prefilling / num_decoding)

    def prefill_budget(self, num_decoding: int, num_prefilling: int) -> int:
        """Prefill tokens of the next step."""
        spare = self.spare_seconds(num_decoding, num_prefilling)
        if spare is None or self._token_seconds is None:
            return self._prefill_chunk
        tokens = int(spare / self._token_seconds) // SMALLEST_CHUNK * SMALLEST_CHUNK
        return min(max(tokens, SMALLEST_CHUNK), self._prefill_chunk)


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + NEWEST * (new - old)
