"""Running estimates of what a step costs: its decoding rows, its prefill, its guesses.

All times are in seconds. The newest measurement has the weight ``NEWEST``, so that the estimates follow
a machine that becomes slower or faster.
"""

from __future__ import annotations

from dataclasses import dataclass

NEWEST = 0.3
FADING = 0.1  # share of the weight of earlier sizes that a new measurement takes
LEAST_SLOPE = 0.05  # of the mean cost per token: what a token costs at least
SPREAD = 0.02  # variance of sizes, relative to their squared mean, that tells a slope apart


def mixed(old: float | None, new: float) -> float:
    """The running mean after a new measurement."""
    return new if old is None else old + NEWEST * (new - old)


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
    weight: float = 0.0


class PrefillCost:
    """Time that prefill adds to a step: ``fixed + per_token * tokens``.

    The fixed part is what any chunk costs: on a GPU, a step with prefill launches its kernels one by one
    instead of replaying a graph. Dividing it by the tokens would make tokens of small chunks look dear,
    the next chunk smaller still, and so on. So chunks are kept apart by size, in powers of two, and a
    line through the means of the sizes tells the two parts apart. If all chunks have about the same
    size, nothing can tell, and the fixed part is taken to be 0.

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
        size = self._sizes.setdefault(tokens.bit_length(), _Size(tokens, base, added))
        size.tokens = mixed(size.tokens, tokens)
        size.base = mixed(size.base, base)
        size.added = mixed(size.added, added)
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
        """Draw the line: least squares, drawn towards a line through the origin.

        The pull is strong only if the sizes are too much alike to tell a slope.
        """
        sizes = self._sizes.values()
        total = sum(size.weight for size in sizes)
        tokens = sum(size.weight * size.tokens for size in sizes) / total
        added = sum(size.weight * size.added for size in sizes) / total
        variance = sum(size.weight * (size.tokens - tokens) ** 2 for size in sizes) / total
        covariance = (
            sum(size.weight * (size.tokens - tokens) * (size.added - added) for size in sizes)
            / total
        )
        mean = added / tokens
        pull = SPREAD * tokens**2
        slope = (covariance + pull * mean) / (variance + pull)
        self.per_token = min(max(slope, LEAST_SLOPE * mean), mean)
        self.fixed = max(added - self.per_token * tokens, 0.0)  # not -1e-18
