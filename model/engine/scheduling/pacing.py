"""How much prefill a step takes on beside the sequences that are decoding.

A long prompt computed at once would stall every running stream; computed in crumbs it would take
for ever. A step with prefill may take ``STRETCH`` times as long as one without; longer when more
prompts wait than streams run, each counting as ``STREAMS_PER_PROMPT`` streams.

What steps cost is learned as the engine runs: that of pure decode steps by their number of rows,
and what each prefill token adds to one.
"""

from __future__ import annotations

STRETCH = 2.0
STREAMS_PER_PROMPT = 4
SMALLEST_CHUNK = 8  # tokens; below this a step's fixed cost dominates
NEWEST = 0.3  # weight of the newest measurement


class Pacing:
    """Running estimates of what steps cost, and the budgets that follow.

    Args:
        prefill_chunk: most prefill tokens in a step.
        fixed: always grant that, whatever it costs.
    """

    def __init__(self, prefill_chunk: int, fixed: bool = False) -> None:
        self._prefill_chunk = prefill_chunk
        self._fixed = fixed
        self._is_first = True
        self._decode_seconds: dict[int, float] = {}  # by rows
        self._token_seconds: float | None = None

    def measured(self, seconds: float, num_decoding: int, prefill_tokens: int) -> None:
        """Learn from a step of one token each of ``num_decoding`` sequences, and others."""
        if self._is_first:  # it finds nothing in memory that later ones find
            self._is_first = False
        elif prefill_tokens == 0:
            old = self._decode_seconds.get(num_decoding)
            self._decode_seconds[num_decoding] = _mixed(old, seconds)
        elif prefill_tokens >= SMALLEST_CHUNK:  # what fewer add is lost in the noise
            decode = self._decode(num_decoding) or 0.0
            added = max(seconds - decode, seconds / 10) / prefill_tokens
            self._token_seconds = _mixed(self._token_seconds, added)

    def spare_seconds(self, num_decoding: int, num_prefilling: int) -> float | None:
        """How much longer than a decode step the next one may take; None if nobody is stalled."""
        decode = self._decode(num_decoding)
        if decode is None or self._fixed:
            return None
        return decode * max(STRETCH - 1, STREAMS_PER_PROMPT * num_prefilling / num_decoding)

    def prefill_budget(self, num_decoding: int, num_prefilling: int) -> int:
        """Prefill tokens of the next step."""
        spare = self.spare_seconds(num_decoding, num_prefilling)
        if spare is None or self._token_seconds is None:
            return self._prefill_chunk
        tokens = int(spare / self._token_seconds) // SMALLEST_CHUNK * SMALLEST_CHUNK
        return min(max(tokens, SMALLEST_CHUNK), self._prefill_chunk)

    def spare_tokens(self, num_decoding: int) -> int:
        """Further tokens that a decode step can compute and hardly take twice as long."""
        if num_decoding == 0 or self._fixed:
            return 0
        least = max(num_decoding, SMALLEST_CHUNK)  # as many again, if they cost the same
        decode = self._decode(num_decoding)
        if decode is None or self._token_seconds is None:
            return least
        return max(int(decode / self._token_seconds), least)

    def _decode(self, rows: int) -> float | None:
        """Seconds of a pure decode step, from those of the most similar number of rows."""
        if rows == 0 or not self._decode_seconds:
            return None
        nearest = min(self._decode_seconds, key=lambda known: abs(known - rows))
        seconds = self._decode_seconds[nearest]
        return max(seconds + (self._token_seconds or 0.0) * (rows - nearest), seconds / 2)


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + NEWEST * (new - old)
