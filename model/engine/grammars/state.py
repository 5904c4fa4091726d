"""The state of one sequence in its grammar, as reported by the grammar's process."""

from __future__ import annotations

from array import array
from collections import deque

import numpy as np
from numpy.typing import NDArray

from model.engine.grammars.follower import Follower
from model.engine.grammars.protocol import MOST_FORCED, STEP_SECONDS, too_complex
from model.engine.request import GrammarSpec
from model.errors import GrammarError


class GrammarState:
    """The state of one sequence. Engine thread only; never blocks beyond the given deadline.

    Args:
        follower: the connection to the grammar's process.
        spec: the grammar's source, for errors.

    Attributes:
        accepted: the answer's tokens so far.
        error: the error that ended it, if any.
        is_late: whether a wait timed out; the sequence skips steps until ``catch_up``.
        mask: one bit per allowed token, lowest first; None until it has arrived.
    """

    accepted: list[int]
    error: GrammarError | None
    is_late: bool
    mask: NDArray[np.uint8] | None
    _forced: deque[int]
    _has_more: bool  # whether more tokens may be forced after these
    _ends: bool
    _awaits_reply: bool
    _unneeded: int  # number of outdated masks still to arrive

    def __init__(self, follower: Follower, spec: GrammarSpec) -> None:
        self._follower = follower
        self._spec = spec
        self.accepted, self.error = [], None
        self.begin_anew()
        self._number = follower.join(self)
        follower.flush()

    @property
    def forced(self) -> int | None:
        """The next token if the grammar forces it, else None."""
        return self._forced[0] if self._forced else None

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete: no token may follow."""
        return self._ends and not self._forced and not self._awaits_reply and self.error is None

    def accept(self, token_id: int) -> None:
        """Advance by an allowed token that does not end the answer; call ``settle`` next."""
        self.accepted.append(token_id)
        if self.error is not None:
            return
        if self._forced:
            self._forced.popleft()
            if not self._forced and self._has_more:
                self._ask([])
        elif not self._ends:
            self._ask([token_id])

    def send(self) -> None:
        """Send accepted tokens to the process."""
        self._follower.flush()

    def settle(self, until: float) -> None:
        """Wait for the tokens that the accepted one forces; late if they do not arrive.

        Args:
            until: deadline, by ``time.monotonic``.
        """
        while self._awaits_reply and self.error is None and self._follower.receive(until):
            pass
        self.is_late = self._awaits_reply and self.error is None

    def wait_for_mask(self, until: float) -> None:
        """Wait for the mask, a forced token or an error; late if none arrives."""
        while not self._can_sample and not self.is_finished and self._follower.receive(until):
            pass
        self.look()

    def look(self) -> None:
        """Update ``is_late``: the mask may have arrived while waiting for others."""
        self.is_late = not self._can_sample

    def catch_up(self) -> bool:
        """Update ``is_late`` without waiting; returns whether it is no longer late."""
        self.wait_for_mask(0)
        self.is_late = not (self._can_sample or self.is_finished)
        return not self.is_late

    def wait(self, until: float) -> None:
        """Wait until a message arrives."""
        self._follower.wait(until)

    def close(self) -> None:
        """Stop following the sequence."""
        self._follower.leave(self._number)
        self.mask = None  # releases the follower's memory

    def take(self, ends: bool, content: bytes, mask: NDArray[np.uint8]) -> bool:
        """See ``Followed``."""
        ids = array("i")
        ids.frombytes(content[: len(content) // ids.itemsize * ids.itemsize])
        if self._unneeded:
            self._unneeded -= 1
        elif self._awaits_reply:
            self._awaits_reply = False
            self._forced.extend(ids)
            self._ends, self._has_more = ends, len(ids) == MOST_FORCED and not ends
        else:
            self.mask = mask
        return all(0 <= token_id < 8 * mask.size for token_id in ids)

    def begin_anew(self) -> None:
        """See ``Followed``; the sequence skips steps until the new process has caught up."""
        self._forced, self._has_more, self._ends = deque(), False, False
        self.mask, self._unneeded = None, 0
        self._awaits_reply = True
        self.is_late = bool(self.accepted)

    def fail(self, reason: str | None) -> None:
        """See ``Followed``."""
        if not reason:
            reason = too_complex("the next token", STEP_SECONDS)
        self.error = self._spec.error(reason)

    @property
    def _can_sample(self) -> bool:
        """Whether a token can be sampled; after an error any token, which is discarded."""
        return self.error is not None or bool(self._forced) or self.mask is not None

    def _ask(self, tokens: list[int]) -> None:
        self._unneeded += self.mask is None
        self.mask = None
        self._awaits_reply = True
        self._follower.ask(self._number, tokens)
