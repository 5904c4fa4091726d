"""How far one answer has come in its grammar, as the process that follows it says."""

from __future__ import annotations

import socket
import time
from array import array
from collections import deque

from model.confined.zygote import readable
from model.engine.grammars.protocol import GO_ON, HEAD, MEMORY, MOST_FORCED, STEP_SECONDS, TOKEN
from model.engine.request import GrammarSpec
from model.errors import GrammarError

STALL_SECONDS = 20.0  # that a reply may take by the clock, were the process not to run at all
READ_SIZE = 1 << 16


class GrammarState:
    """Follows one answer. Used by the engine's thread alone; never waits longer than it is told to.

    Args:
        process: the connection to the process that follows the answer; closed by ``close``.
        num_bytes: of a mask.
        spec: what the grammar was compiled from, for errors.

    Attributes:
        error: what went wrong, if anything: the grammar took too much.
        is_late: whether it was waited for in vain; the answer sits steps out until ``catch_up``.
    """

    def __init__(self, process: socket.socket, num_bytes: int, spec: GrammarSpec) -> None:
        process.setblocking(False)
        self._process = process
        self._num_bytes = num_bytes
        self._spec = spec
        self._received = bytearray()
        self._forced: deque[int] = deque()
        self._has_more = False  # whether more may be forced after these
        self._ends = False
        self._mask: bytes | None = None
        self._unneeded = 0  # masks still to come that nobody waits for
        self._awaits_reply = True
        self._asked_at = time.monotonic()
        self.error: GrammarError | None = None
        self.is_late = False

    @property
    def forced(self) -> int | None:
        """The only token that may come next, where it is known to be the only one."""
        return self._forced[0] if self._forced else None

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow."""
        return self._ends and not self._forced and not self._awaits_reply and self.error is None

    @property
    def mask(self) -> bytes | None:
        """A bit for each token that may come next, the lowest first; None until it has come."""
        return self._mask

    def accept(self, token_id: int) -> None:
        """Go on by a token that was allowed, and does not end the answer. ``settle`` comes next."""
        if self.error is not None:
            return
        if self._forced:
            self._forced.popleft()
            if not self._forced and self._has_more:
                self._ask(GO_ON)
        elif not self._ends:
            self._ask(token_id)

    def settle(self, until: float) -> bool:
        """Learn what the accepted token forces; whether that is known.

        Args:
            until: how long to wait, by ``time.monotonic``.
        """
        while self._awaits_reply and self.error is None and self._receive(until):
            self._parse()
        self.is_late = self._awaits_reply and self.error is None
        return not self.is_late

    def wait_for_mask(self, until: float) -> None:
        """Get the mask, or a forced token or an error in its place; it is late if there is none."""
        while not self._can_sample and not self.is_finished and self._receive(until):
            self._parse()
        self.is_late = not self._can_sample

    def catch_up(self) -> bool:
        """Whether what was waited for in vain has come since; does not wait."""
        self.wait_for_mask(0)
        self.is_late = not (self._can_sample or self.is_finished)
        return not self.is_late

    def wait(self, until: float) -> None:
        """Wait until something has come."""
        readable(self._process, until - time.monotonic())

    def close(self) -> None:
        """End the process; what it is doing ends when its time is up."""
        self._process.close()

    @property
    def _can_sample(self) -> bool:
        """Whether a token can be chosen; after an error any, which nobody sees."""
        return self.error is not None or bool(self._forced) or self._mask is not None

    def _ask(self, token_id: int) -> None:
        self._unneeded += self._mask is None
        self._mask = None
        self._awaits_reply = True
        self._asked_at = time.monotonic()
        try:
            self._process.send(TOKEN.pack(token_id))
        except OSError:
            self._fail()

    def _receive(self, until: float) -> bool:
        """Take what has come, or notice that nothing will; False when it is too late for that."""
        try:
            data = self._process.recv(READ_SIZE)
        except BlockingIOError:
            now = time.monotonic()
            if readable(self._process, until - now):
                return True
            if now - self._asked_at > STALL_SECONDS:
                self._fail()
            return False
        except OSError:
            data = b""
        if data:
            self._received += data
        else:
            self._fail()
        return True

    def _parse(self) -> None:
        received = self._received
        while len(received) >= HEAD.size and self.error is None:
            ends, is_error, size = HEAD.unpack_from(received)
            if len(received) < HEAD.size + size:
                return
            content = bytes(received[HEAD.size : HEAD.size + size])
            del received[: HEAD.size + size]
            if is_error:
                self.error = self._spec.error(content.decode(errors="replace"))
            elif self._unneeded:
                self._unneeded -= 1
            elif self._awaits_reply:
                self._awaits_reply = False
                ids = array("i")
                ids.frombytes(content)
                self._forced.extend(ids)
                self._ends, self._has_more = bool(ends), len(ids) == MOST_FORCED
            elif size == self._num_bytes:
                self._mask = content

    def _fail(self) -> None:
        self.error = self._spec.error(
            f"the next token took more than {STEP_SECONDS:g} seconds or {MEMORY >> 20} MiB, or it nests "
            "too deep; make it smaller, flatter or less ambiguous"
        )
