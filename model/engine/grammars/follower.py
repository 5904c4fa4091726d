"""The engine's end of the process that follows the answers to one grammar.

What it is asked goes out in batches, one for a step, and it answers them in order. So when it ends, it
is known whose turn it was: that answer fails, and the others are followed anew by another process.
"""

from __future__ import annotations

import contextlib
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Protocol

from model.confined.zygote import readable
from model.engine.grammars.protocol import COUNT, DROP, HEAD

STALL_SECONDS = 20.0  # that a reply may take by the clock, were the process not to run at all
READ_SIZE = 1 << 18


class Followed(Protocol):
    """An answer, as the process knows it."""

    @property
    def accepted(self) -> list[int]:
        """Its tokens so far."""

    def take(self, ends: bool, content: bytes) -> None:
        """Take what the process says next of it."""

    def begin_anew(self) -> None:
        """Forget what the process has said."""

    def fail(self, reason: str | None) -> None:
        """What is wrong, in the process's words if it had any."""


class Follower:
    """Asks the process, and hands on what it says. Used by the engine's thread alone; never blocks.

    Args:
        start: starts a process; returns the connection to it.
    """

    _process: socket.socket
    _batch: array[int]
    _asked: list[int]  # of the batch, whose reply is wanted
    _outbox: bytearray
    _inbox: bytearray
    _awaited: deque[tuple[int, bool]]  # whose message comes next, and whether it is a mask
    _asked_at: float

    def __init__(self, start: Callable[[], socket.socket]) -> None:
        self._start = start
        self._answers: dict[int, Followed] = {}
        self._count = 0
        self._open()

    @property
    def is_closed(self) -> bool:
        """Whether there is no process, for want of answers."""
        return self._process.fileno() < 0

    def join(self, answer: Followed) -> int:
        """Have another answer followed, from its tokens so far on; returns its number."""
        self._count += 1
        self._answers[self._count] = answer
        self.ask(self._count, answer.accepted)
        return self._count

    def leave(self, number: int) -> None:
        """Follow an answer no more; the process ends with the last one."""
        if self._answers.pop(number, None) is None:
            return
        if self._answers:
            self._batch.extend((number, DROP))
        else:
            self._process.close()

    def ask(self, number: int, tokens: list[int]) -> None:
        """Have an answer go on by some tokens, at the next ``flush``."""
        self._batch.extend((number, len(tokens), *tokens))
        self._asked.append(number)

    def flush(self) -> None:
        """Send what was asked."""
        if self._batch:
            self._outbox += COUNT.pack(len(self._batch)) + self._batch.tobytes()
            # First the replies to a batch, then the masks.
            self._awaited += [(number, False) for number in self._asked]
            self._awaited += [(number, True) for number in self._asked]
            self._asked_at = time.monotonic()
            self._batch, self._asked = array("i"), []
        with contextlib.suppress(OSError):  # too full, or gone; that is noticed in receiving
            while self._outbox:
                del self._outbox[: self._process.send(self._outbox)]

    def receive(self, until: float) -> bool:
        """Hand on what has come, or notice that nothing will; False when it is too late for that.

        Args:
            until: how long to wait, by ``time.monotonic``.
        """
        self.flush()
        try:
            data = self._process.recv(READ_SIZE)
        except BlockingIOError:
            now = time.monotonic()
            if readable(self._process, until - now):
                return True
            if self._awaited and now - self._asked_at > STALL_SECONDS:
                self._replace()
                return True
            return False
        except OSError:
            data = b""
        if data:
            self._inbox += data
            self._hand_on()
        else:
            self._replace()
        return True

    def wait(self, until: float) -> None:
        """Wait until something has come."""
        self.flush()
        readable(self._process, until - time.monotonic())

    def _open(self) -> None:
        self._process = self._start()
        self._process.setblocking(False)
        self._batch, self._asked = array("i"), []
        self._outbox, self._inbox = bytearray(), bytearray()
        self._awaited = deque()
        self._asked_at = time.monotonic()

    def _hand_on(self) -> None:
        inbox = self._inbox
        while len(inbox) >= HEAD.size:
            number, ends, is_error, size = HEAD.unpack_from(inbox)
            if len(inbox) < HEAD.size + size:
                return
            content = bytes(inbox[HEAD.size : HEAD.size + size])
            del inbox[: HEAD.size + size]
            _, is_mask = self._awaited.popleft()
            if not is_mask and (ends or is_error):
                self._awaited.remove((number, True))
            answer = self._answers.get(number)
            if answer is None:
                continue
            if is_error:
                answer.fail(content.decode(errors="replace"))
            else:
                answer.take(ends, content)

    def _replace(self) -> None:
        """Go on with another process; the answer that this one was busy with fails."""
        culprit = self._awaited[0][0] if self._awaited else None
        self._process.close()
        self._open()
        for number, answer in list(self._answers.items()):
            if number == culprit:
                del self._answers[number]
                answer.fail(None)
            else:
                answer.begin_anew()
                self.ask(number, answer.accepted)
        if not self._answers:
            self._process.close()
