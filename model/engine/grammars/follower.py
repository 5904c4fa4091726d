"""The engine's end of the process that follows the sequences of one grammar.

Requests go out in batches, one for a step; masks come back in shared memory. The process says which
sequence it is busy with: when it dies, that one fails, and another process follows the rest anew.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.engine.grammars.protocol import COUNT, DROP, HEAD, NOBODY
from model.errors import OverloadedError

STALL_SECONDS = 20.0  # that a reply may take by the clock, were the process not to run at all
READ_SIZE = 1 << 18
LONGEST = 1 << 16  # bytes of a message


class Followed(Protocol):
    """A sequence, as the process knows it."""

    @property
    def accepted(self) -> list[int]:
        """Its tokens so far."""

    def take(self, ends: bool, content: bytes, mask: NDArray[np.uint8]) -> bool:
        """Take what the process says next of it, if that makes sense; its masks are in ``mask``."""

    def begin_anew(self) -> None:
        """Forget what the process has said."""

    def fail(self, reason: str | None) -> None:
        """What is wrong, in the process's words if it had any."""


class Follower:
    """Talks to the process. Used by the engine's thread alone; never blocks.

    Args:
        start: starts a process; returns the connection to it, and the rows that it shares.
    """

    _process: socket.socket
    _shared: NDArray[np.uint8]
    _batch: array[int]
    _outbox: bytearray
    _inbox: bytearray
    _awaited: Counter[int]  # how many messages are to come of each sequence
    _asked_at: float
    _was_heard: bool  # whether the process has said anything

    def __init__(self, start: Callable[[], tuple[socket.socket, NDArray[np.uint8]]]) -> None:
        self._start = start
        self._sequences: dict[int, Followed] = {}
        self._open()

    @property
    def is_closed(self) -> bool:
        """Whether there is no process because there are no sequences."""
        return self._process.fileno() < 0

    def join(self, sequence: Followed) -> int:
        """Follow another sequence, from its tokens so far; returns its number.

        Raises:
            OverloadedError: there are too many, with those whose clients have just gone away.
        """
        taken = self._sequences.keys() | +self._awaited  # of others there may still be messages
        number = next(number for number in itertools.count() if number not in taken)
        if number >= len(self._shared) - 1:
            raise OverloadedError("too many answers use this grammar; try again in a moment")
        self._sequences[number] = sequence
        self.ask(number, sequence.accepted)
        return number

    def leave(self, number: int) -> None:
        """Stop following a sequence; the process ends with the last one."""
        if self._sequences.pop(number, None) is None:
            return
        if self._sequences:
            self._batch.extend((number, DROP))
        else:
            self._close()

    def ask(self, number: int, tokens: list[int]) -> None:
        """Advance a sequence by some tokens, at the next ``flush``."""
        self._batch.extend((number, len(tokens), *tokens))
        self._awaited[number] += 2

    def flush(self) -> None:
        """Send what is queued."""
        if self._batch:
            self._outbox += COUNT.pack(len(self._batch)) + self._batch.tobytes()
            self._asked_at = time.monotonic()
            self._batch = array("i")
        with contextlib.suppress(OSError):  # too full, or gone; that is noticed in receiving
            while self._outbox:
                del self._outbox[: self._process.send(self._outbox)]

    def receive(self, until: float) -> bool:
        """Hand on what has come, or notice that nothing will; False when it is too late for that.

        Args:
            until: how long to wait, by ``time.monotonic``.
        """
        if self.is_closed:
            return False
        self.flush()
        try:
            data = self._process.recv(READ_SIZE)
        except BlockingIOError:
            stalls_at = self._asked_at + STALL_SECONDS
            if self._is_ready(min(until, stalls_at)):
                return True
            if time.monotonic() < stalls_at:
                return False
            data = b""
        except OSError:
            data = b""
        if data:
            self._was_heard = True
            self._inbox += data
        if not (data and self._hand_on()):
            self._replace()
        return True

    def wait(self, until: float) -> None:
        """Wait until something has come."""
        if not self.is_closed:
            self.flush()
            self._is_ready(until)

    def _is_ready(self, until: float) -> bool:
        """Wait until there is something to read, or to go on sending."""
        poll = select.poll()
        poll.register(self._process, select.POLLIN | (select.POLLOUT if self._outbox else 0))
        return bool(poll.poll(max(0.0, 1000 * (until - time.monotonic()))))

    def _close(self) -> None:
        self._process.close()
        self._shared = self._shared[:0].copy()  # or its memory would stay mapped

    def _open(self) -> None:
        self._process, self._shared = self._start()
        self._process.setblocking(False)
        self._batch, self._outbox, self._inbox = array("i"), bytearray(), bytearray()
        self._awaited, self._was_heard = Counter(), False
        self._asked_at = time.monotonic()

    def _hand_on(self) -> bool:
        """Hand on messages that have come whole; whether they make sense."""
        inbox = self._inbox
        while len(inbox) >= HEAD.size:
            number, ends, is_error, size = HEAD.unpack_from(inbox)
            if size > LONGEST:
                return False
            if len(inbox) < HEAD.size + size:
                break
            content = bytes(inbox[HEAD.size : HEAD.size + size])
            del inbox[: HEAD.size + size]
            self._awaited[number] -= 2 if ends else 1
            sequence = self._sequences.get(number)
            if sequence is None:
                continue
            if is_error:
                sequence.fail(content.decode(errors="replace"))
            elif not sequence.take(ends, content, self._shared[1 + number]):
                return False
        return True

    def _replace(self) -> None:
        """Switch to a new process; the sequence that the old one was busy with fails."""
        culprit = int(self._shared[0].view(np.int32)[0])
        self._close()
        # One that did nothing was not started: the one that starts them may be gone.
        if culprit != NOBODY or self._was_heard:
            with contextlib.suppress(OSError):  # too many open files
                self._open()
        if self.is_closed:
            for sequence in self._sequences.values():
                sequence.fail("the grammar's process has died; try again")
            self._sequences.clear()
            return
        for number, sequence in list(self._sequences.items()):
            if number == culprit:
                del self._sequences[number]
                sequence.fail(None)
            else:
                sequence.begin_anew()
                self.ask(number, sequence.accepted)
        if self._sequences:
            self.flush()
        else:
            self._close()
