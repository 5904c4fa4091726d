"""Running estimates of what a step costs: its decoding rows, its prefill, its guesses.

All times are in seconds. The newest measurement has the weight ``NEWEST``, so that the estimates follow
a machine that becomes slower or faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

NEWEST = 0.3
FADING = 0.1  # share of the weight of earlier sizes that a new measurement takes
LEAST_WEIGHT = 0.1  # of a size in the slope; without old sizes, steps of one size would forget it
LEAST_SLOPE = 0.25  # of the mean cost per token; so chunks grow at most fourfold from step to step
SPREAD = 2.5  # times that the largest size must exceed the smallest to tell a slope from noise


def mixed(old: float | None, new: float) -> float:
    """The running mean after a new measurement.

    Interruptions make single steps much too slow, and nothing makes them much too fast. So if the new
    time is less than half of the mean, it replaces the mean.
    """
    return new if old is None or new < old / 2 else old + NEWEST * (new - old)


class DecodeCost:
    """Time of steps that only decode, by number of rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def measured(self, rows: int, seconds: float) -> None:
        """Learn from a step with one token for each row."""
        self._seconds[rows] = mixed(self._seconds.get(rows), seconds)

    def seconds(self, rows: int, per_row: float) -> float | None:
        """Estimated time, from the nearest measured number of rows; None before any measurement.

        Args:
            rows: number of rows.
            per_row: seconds that a further row adds.
        """
        if not self._seconds:
            return None
        nearest = min(self._seconds, key=lambda known: abs(known - rows))
        seconds = self._seconds[nearest]
        return max(seconds + per_row * (rows - nearest), seconds / 2)


@dataclass
class _Size:
    """Running means of chunks of similar size.

    Attributes:
        tokens: of the chunks.
        base: seconds of the same steps without the chunks.
        added: seconds that the chunks added.
        weight: how recent they are.
    """

    tokens: float
    base: float
    added: float
    weight: float


class PrefillCost:
    """Time that prefill adds to a step: ``fixed + per_token * tokens``.

    The fixed part is what any chunk costs: on a GPU, a step with prefill launches its kernels one by one
    instead of replaying a graph. Dividing it by the tokens would make tokens of small chunks look dear,
    the next chunk smaller still, and so on. So chunks are kept apart by size, in powers of two, and a
    line through the means of the sizes tells the two parts apart. While all chunks are of similar size,
    nothing can tell, and the fixed part is taken to be 0.

    Attributes:
        fixed: seconds of any chunk, at least 0.
        per_token: further seconds of each token; None before the first measurement.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}  # by number of bits
        self.fixed = 0.0
        self.per_token: float | None = None

    def measured(self, tokens: int, base: float, seconds: float) -> None:
        """Learn from a step.

        Args:
            tokens: of all its chunks.
            base: estimated seconds of the step without them.
            seconds: of the step.
        """
        added = max(seconds - base, seconds / 10)  # an estimate too high must not make them free
        for other in self._sizes.values():
            other.weight *= 1 - FADING
        bits = tokens.bit_length()
        size = self._sizes.get(bits)
        if size is None or added / tokens < size.added / size.tokens / 2:  # as in mixed()
            weight = 0.0 if size is None else size.weight
            size = self._sizes[bits] = _Size(tokens, base, added, weight)
        size.tokens += NEWEST * (tokens - size.tokens)
        size.base += NEWEST * (base - size.base)
        size.added += NEWEST * (added - size.added)
        size.weight += FADING
        self._fit()

    def tokens_within(self, seconds: float) -> float | None:
        """Number of tokens that add so many seconds; None before the first measurement.

        More, if the fixed part alone takes most of them: the part that computes tokens takes at least
        as long, because shorter chunks would spend most of their steps on the fixed part.
        """
        if self.per_token is None:
            return None
        return max(seconds - self.fixed, self.fixed) / self.per_token

    def safe_tokens(self, seconds: float) -> float:
        """Number of tokens that add no more than so many seconds even if the line bends upwards.

        While a GPU reads the weights, a few hundred tokens are computed at no further cost; from there
        on each has its price. So beyond the largest size measured, the step's whole time is taken to
        grow in proportion.
        """
        largest = self._sizes[max(self._sizes)]
        growth = (largest.base + seconds) / (largest.base + largest.added)
        return largest.tokens * max(growth, 1.0)

    def _fit(self) -> None:
        """Draw the line through the mean of recent chunks; all sizes decide on its slope."""
        sizes = [self._sizes[bits] for bits in sorted(self._sizes)]
        total = sum(size.weight for size in sizes)
        tokens = sum(size.weight * size.tokens for size in sizes) / total
        added = sum(size.weight * size.added for size in sizes) / total
        self.per_token = mean = added / tokens
        if sizes[-1].tokens >= SPREAD * sizes[0].tokens:  # least squares
            # What took longer than a larger chunk was interrupted.
            least = list(accumulate((size.added for size in reversed(sizes)), min))[::-1]
            products = squares = 0.0
            for size, seconds in zip(sizes, least, strict=True):
                weight, apart = max(size.weight / total, LEAST_WEIGHT), size.tokens - tokens
                products += weight * apart * (seconds - added)
                squares += weight * apart**2
            self.per_token = min(max(products / squares, LEAST_SLOPE * mean), mean)
        self.fixed = max(added - self.per_token * tokens, 0.0)  # not -1e-18
