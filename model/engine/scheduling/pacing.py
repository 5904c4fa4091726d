"""Decides how much prefill a step computes besides decoding.

Prefilling a long prompt at once would stall all running streams; very small chunks would take too long.
So a step with prefill may take longer than one without, by how much depends on the device (``Pauses``).
What steps cost is learned at run time (``step_costs``): decoding, prefill and guesses each on their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.engine.scheduling.step_costs import DecodeCost, PrefillCost, mixed

SMALLEST_CHUNK = 8  # tokens; smaller chunks are dominated by a step's fixed cost


@dataclass(frozen=True)
class Pauses:
    """How long a step with prefill may take, while the running streams wait.

    Attributes:
        stretch: times as long as a step without prefill.
        floor: seconds that it may take in any case; people don't notice shorter pauses.
        streams_per_prompt: number of streams that a waiting prompt counts as. If the prompts count for
            more than the streams, the additional time grows in proportion.
        first_chunk: tokens of the first chunk beside streams, from which chunks grow step by step;
            None to try the largest at once.
    """

    stretch: float
    floor: float
    streams_per_prompt: float
    first_chunk: int | None

    def spare_seconds(self, decode: float, num_decoding: int, num_prefilling: int) -> float:
        """Seconds by which a step may exceed one that takes ``decode`` seconds without prefill."""
        spare = max((self.stretch - 1) * decode, self.floor - decode)
        return spare * max(1.0, self.streams_per_prompt * num_prefilling / num_decoding)


CPU_PAUSES = Pauses(stretch=2.0, floor=0.0, streams_per_prompt=4, first_chunk=None)
AIM = 7 / 8  # of what streams on a GPU may wait, because the times of steps vary
GPU_PAUSES = Pauses(
    stretch=3 * AIM,
    floor=0.05 * AIM,
    streams_per_prompt=1,
    first_chunk=256,  # which cost little more than one token: the weights are read once anyway
)


def pauses_on(device_type: str) -> Pauses:
    """The pauses on a type of device, such as ``"cpu"``."""
    return GPU_PAUSES if device_type == "cuda" else CPU_PAUSES


class Pacing:
    """Budgets of a step that follow from what steps cost.

    Args:
        prefill_chunk: maximum number of prefill tokens in a step.
        fixed: always allow ``prefill_chunk`` tokens.
        pauses: how long a step with prefill may take.
    """

    def __init__(
        self, prefill_chunk: int, fixed: bool = False, pauses: Pauses = CPU_PAUSES
    ) -> None:
        self._prefill_chunk = prefill_chunk
        self._fixed = fixed
        self._pauses = pauses
        self._is_first = True
        self._decode_cost = DecodeCost()
        self._prefill_cost = PrefillCost()
        self._guess_seconds: float | None = None  # per token

    def measured(
        self, seconds: float, num_decoding: int, prefill_tokens: int, guessed_tokens: int = 0
    ) -> None:
        """Learn from a step.

        Args:
            seconds: that it took.
            num_decoding: decoding sequences.
            prefill_tokens: of all other sequences.
            guessed_tokens: tokens of decoding sequences beyond one each: guessed or forced ones.
        """
        added = prefill_tokens + guessed_tokens
        if self._is_first:  # slower than later ones, because caches are cold
            self._is_first = False
        elif added == 0:
            self._decode_cost.measured(num_decoding, seconds)
        elif added >= SMALLEST_CHUNK:  # fewer are lost in the noise
            decode = self._decode(num_decoding) or 0.0
            if prefill_tokens:  # in such a step all tokens cost the same
                self._prefill_cost.measured(added, decode, seconds)
            else:
                each = max(seconds - decode, seconds / 10) / guessed_tokens
                self._guess_seconds = mixed(self._guess_seconds, each)

    def spare_seconds(self, num_decoding: int, num_prefilling: int) -> float | None:
        """Seconds by which the next step may exceed a decode step; None if unlimited."""
        decode = self._decode(num_decoding)
        if decode is None or num_decoding == 0 or self._fixed:
            return None
        return self._pauses.spare_seconds(decode, num_decoding, num_prefilling)

    def prefill_budget(self, num_decoding: int, num_prefilling: int) -> int:
        """Maximum number of prefill tokens in the next step."""
        spare = self.spare_seconds(num_decoding, num_prefilling)
        if spare is None:
            return self._prefill_chunk
        tokens, first = self._prefill_cost.tokens_within(spare), self._pauses.first_chunk
        if tokens is None:
            return min(first or self._prefill_chunk, self._prefill_chunk)
        if first is not None:
            tokens = min(tokens, max(self._prefill_cost.safe_tokens(spare), first))
        whole = int(tokens) // SMALLEST_CHUNK * SMALLEST_CHUNK
        return min(max(whole, SMALLEST_CHUNK), self._prefill_chunk)

    def spare_tokens(self, num_decoding: int) -> int:
        """Number of guessed tokens with which a decode step takes about twice as long."""
        if num_decoding == 0 or self._fixed:
            return 0
        least = max(num_decoding, SMALLEST_CHUNK)  # as many as decode, if they cost the same
        decode, each = self._decode(num_decoding), self._guess_seconds
        if each is None:
            each = self._prefill_cost.per_token
        if decode is None or each is None:
            return least
        return max(int(decode / each), least)

    def _decode(self, rows: int) -> float | None:
        """Estimated seconds of a step that only decodes; None before any such step."""
        per_row = self._prefill_cost.per_token or self._guess_seconds or 0.0
        return self._decode_cost.seconds(rows, per_row)
