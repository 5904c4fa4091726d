"""Decides how much prefill a step computes besides decoding.

Prefilling a long prompt at once would stall all running streams; very small chunks would take too long.
A step with prefill may take ``STRETCH`` times as long as one without, and longer if many prompts wait:
each counts as ``STREAMS_PER_PROMPT`` streams.

The costs are learned at run time: the time of pure decode steps by number of rows, and the additional
time per prefill token.
"""

from __future__ import annotations

STRETCH = 2.0
STREAMS_PER_PROMPT = 4
SMALLEST_CHUNK = 8  # tokens; smaller chunks are dominated by a step's fixed cost
NEWEST = 0.3  # weight of the newest measurement


class Pacing:
    """Running estimates of step times, and budgets derived from them.

    Args:
        prefill_chunk: maximum number of prefill tokens in a step.
        fixed: always allow ``prefill_chunk`` tokens.
    """

    def __init__(self, prefill_chunk: int, fixed: bool = False) -> None:
        self._prefill_chunk = prefill_chunk
        self._fixed = fixed
        self._is_first = True
        self._decode_seconds: dict[int, float] = {}  # by rows
        self._token_seconds: float | None = None

    def measured(self, seconds: float, num_decoding: int, prefill_tokens: int) -> None:
        """Learn from a step with ``num_decoding`` decoding sequences and ``prefill_tokens``."""
        if self._is_first:  # slower than later ones, because caches are cold
            self._is_first = False
        elif prefill_tokens == 0:
            old = self._decode_seconds.get(num_decoding)
            self._decode_seconds[num_decoding] = _mixed(old, seconds)
        elif prefill_tokens >= SMALLEST_CHUNK:  # fewer are lost in the noise
            decode = self._decode(num_decoding) or 0.0
            added = max(seconds - decode, seconds / 10) / prefill_tokens
            self._token_seconds = _mixed(self._token_seconds, added)

    def spare_seconds(self, num_decoding: int, num_prefilling: int) -> float | None:
        """Seconds by which the next step may exceed a decode step; None if unlimited."""
        decode = self._decode(num_decoding)
        if decode is None or self._fixed:
            return None
        return decode * max(STRETCH - 1, STREAMS_PER_PROMPT * num_prefilling / num_decoding)

    def prefill_budget(self, num_decoding: int, num_prefilling: int) -> int:
        """Maximum number of prefill tokens in the next step."""
        spare = self.spare_seconds(num_decoding, num_prefilling)
        if spare is None or self._token_seconds is None:
            return self._prefill_chunk
        tokens = int(spare / self._token_seconds) // SMALLEST_CHUNK * SMALLEST_CHUNK
        return min(max(tokens, SMALLEST_CHUNK), self._prefill_chunk)

    def spare_tokens(self, num_decoding: int) -> int:
        """Number of additional tokens with which a decode step takes about twice as long."""
        if num_decoding == 0 or self._fixed:
            return 0
        least = max(num_decoding, SMALLEST_CHUNK)  # as many as decode, if they cost the same
        decode = self._decode(num_decoding)
        if decode is None or self._token_seconds is None:
            return least
        return max(int(decode / self._token_seconds), least)

    def _decode(self, rows: int) -> float | None:
        """Estimated seconds of a pure decode step, from the nearest measured number of rows."""
        if rows == 0 or not self._decode_seconds:
            return None
        nearest = min(self._decode_seconds, key=lambda known: abs(known - rows))
        seconds = self._decode_seconds[nearest]
        return max(seconds + (self._token_seconds or 0.0) * (rows - nearest), seconds / 2)


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + NEWEST * (new - old)
