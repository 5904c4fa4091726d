"""The engine's connection to the process that follows the sequences of one grammar.

The engine sends one batch per step; masks come back in shared memory. The process publishes which
sequence it is working on: if it dies, that sequence fails, and a new process follows the others.
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

STALL_SECONDS = 20.0  # wall-clock limit of a reply, for a process that hangs
READ_SIZE = 1 << 18
LONGEST = 1 << 16  # bytes of a message


class Followed(Protocol):
    """A sequence that the process follows."""

    @property
    def accepted(self) -> list[int]:
        """Its tokens so far."""

    def take(self, ends: bool, content: bytes, mask: NDArray[np.uint8]) -> bool:
        """Handle the next message about it; False if it is invalid. Masks are in ``mask``."""

    def begin_anew(self) -> None:
        """Reset, because a new process starts over."""

    def fail(self, reason: str | None) -> None:
        """Fail with the process's error message, if there is one."""


class Follower:
    """Communicates with the process. Engine thread only; waits only when told to.

    Args:
        start: starts a process; returns the connection and the shared rows.
    """

    _process: socket.socket
    _shared: NDArray[np.uint8]
    _batch: array[int]
    _outbox: bytearray
    _inbox: bytearray
    _awaited: Counter[int]  # number of messages still to come, by sequence
    _asked_at: float
    _was_heard: bool  # whether any message has arrived

    def __init__(self, start: Callable[[], tuple[socket.socket, NDArray[np.uint8]]]) -> None:
        self._start = start
        self._sequences: dict[int, Followed] = {}
        self._open()

    @property
    def is_closed(self) -> bool:
        """Whether there are no sequences, and so no process."""
        return self._process.fileno() < 0

    def join(self, sequence: Followed) -> int:
        """Follow another sequence from its tokens so far; returns its number.

        Raises:
            OverloadedError: too many sequences, including those aborted just now.
        """
        taken = (
            self._sequences.keys() | +self._awaited
        )  # messages about aborted ones may still arrive
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
        """Advance a sequence by tokens; sent by the next ``flush``."""
        self._batch.extend((number, len(tokens), *tokens))
        self._awaited[number] += 2

    def flush(self) -> None:
        """Send queued requests."""
        if self._batch:
            self._outbox += COUNT.pack(len(self._batch)) + self._batch.tobytes()
            self._asked_at = time.monotonic()
            self._batch = array("i")
        with contextlib.suppress(OSError):  # buffer full or process dead; receive() notices
            while self._outbox:
                del self._outbox[: self._process.send(self._outbox)]

    def receive(self, until: float) -> bool:
        """Handle new messages, or replace a dead process; False if nothing arrives in time.

        Args:
            until: deadline, by ``time.monotonic``.
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
        """Wait until a message arrives."""
        if not self.is_closed:
            self.flush()
            self._is_ready(until)

    def _is_ready(self, until: float) -> bool:
        """Wait until the connection is readable, or writable if there is something to send."""
        poll = select.poll()
        poll.register(self._process, select.POLLIN | (select.POLLOUT if self._outbox else 0))
        return bool(poll.poll(max(0.0, 1000 * (until - time.monotonic()))))

    def _close(self) -> None:
        self._process.close()
        self._shared = self._shared[:0].copy()  # releases the mapped memory

    def _open(self) -> None:
        self._process, self._shared = self._start()
        self._process.setblocking(False)
        self._batch, self._outbox, self._inbox = array("i"), bytearray(), bytearray()
        self._awaited, self._was_heard = Counter(), False
        self._asked_at = time.monotonic()

    def _hand_on(self) -> bool:
        """Handle complete messages; False if one is invalid."""
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
        """Start a new process; the sequence that the old one was working on fails."""
        culprit = int(self._shared[0].view(np.int32)[0])
        self._close()
        # If it did nothing it was never started: the process that forks it may be dead.
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
