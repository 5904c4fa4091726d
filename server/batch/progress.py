"""What became of the lines so far: a bar for whoever watches, and a sentence at the end."""

from __future__ import annotations

import os
import sys
import time

SECONDS_BETWEEN_LINES = 10.0  # of a log, where nobody watches


class Progress:
    """Counts lines, and shows by how many bytes of the input are dealt with.

    Args:
        size: of the input, in bytes.
        quiet: whether to show no bar.

    Attributes:
        left: lines that got no result, and may get one in another run.
    """

    def __init__(self, size: int, quiet: bool) -> None:
        # It reads TQDM_DISABLE when it is imported, for the libraries' bars too: after the log is set up.
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
            disable=quiet or bool(os.environ.get("TQDM_DISABLE")),  # its own variable
        )

    def answered(self, tokens: int) -> None:
        """Note an answer of so many tokens."""
        self._answered += 1
        self._tokens += tokens

    def failed(self) -> None:
        """Note a line that gets an error."""
        self._failed += 1

    def earlier(self) -> None:
        """Note a line that an earlier run has dealt with."""
        self._earlier += 1

    def advance(self, size: int) -> None:
        """Note that a line of so many bytes is dealt with."""
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
        """End the bar; returns the sentence."""
        self._bar.close()
        return (
            f"{self._answered} answered, {self._failed} failed, {self.left} left, "
            f"{self._earlier} by earlier runs; {self._tokens} tokens in {self._seconds:.3f} s"
        )
