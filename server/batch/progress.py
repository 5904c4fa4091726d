"""The progress bar and the final summary of a batch."""

from __future__ import annotations

import os
import sys
import time

SECONDS_BETWEEN_LINES = 10.0  # if the output is not a terminal


class Progress:
    """Counts lines and shows progress in bytes of the input.

    Args:
        size: bytes of the input.
        quiet: disables the bar.

    Attributes:
        left: lines without a result, which the next run retries.
    """

    def __init__(self, size: int, quiet: bool) -> None:
        # tqdm reads TQDM_DISABLE on import, so import it after logging is configured.
        from tqdm import tqdm

        self._answered = self._failed = self._earlier = self._tokens = self.left = 0
        self._started = time.monotonic()
        watched = sys.stderr.isatty()
        self._bar = tqdm(
            total=size,
            unit="B",
            unit_scale=True,
            desc="batch",
            mininterval=0.5 if watched else SECONDS_BETWEEN_LINES,
            dynamic_ncols=watched,
            disable=quiet or bool(os.environ.get("TQDM_DISABLE")),
        )

    def answered(self, tokens: int) -> None:
        """Count a completion with that many tokens."""
        self._answered += 1
        self._tokens += tokens

    def failed(self) -> None:
        """Count a line whose result is an error."""
        self._failed += 1

    def earlier(self) -> None:
        """Count a line whose result was written by an earlier run."""
        self._earlier += 1

    def advance(self, size: int) -> None:
        """Advance the bar by a line of that many bytes."""
        counts = f"{self._answered} answered, {self._failed} failed, {self._speed:.0f} tokens/s"
        self._bar.set_postfix_str(counts, refresh=False)
        self._bar.update(size)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def _speed(self) -> float:
        return self._tokens / max(self._seconds, 1e-9)

    def close(self) -> str:
        """Close the bar and return the summary."""
        self._bar.close()
        return (
            f"{self._answered} answered, {self._failed} failed, {self.left} left, "
            f"{self._earlier} by earlier runs; {self._tokens} tokens in {self._seconds:.3f} s"
        )
