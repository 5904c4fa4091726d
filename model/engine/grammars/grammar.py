"""Compiles grammars, each in its own process, and caches them for later requests."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.confined import Worker, WorkerError, Zygote
from model.confined.zygote import readable
from model.engine.grammars.follower import Follower
from model.engine.grammars.protocol import BEGIN, COMPILE_SECONDS, NOBODY, mask_bytes, too_complex
from model.engine.grammars.state import GrammarState
from model.engine.request import GrammarSpec
from model.errors import GrammarError, OverloadedError
from model.phi3v.inputs.tokenizer import Phi3VTokenizer

WORKER = "model.engine.grammars.worker:prepare"  # imported only in the processes, with its library
LARGEST_SOURCE = 200_000  # characters
KEPT = 64  # cached grammars
KEPT_BYTES = 256 << 20  # of all cached grammars
MOST_BYTES = 1 << 30  # of all grammars in use
LONGEST_REPLY = 20_000  # bytes
COMPILE_TIMEOUT = 30.0  # wall-clock seconds; the process itself limits CPU time
LOOK_EVERY = 0.05  # seconds between checks for cancellation
Key = tuple[str, str, str]


class CancelledError(Exception):
    """The request was cancelled."""


class Grammar:
    """A compiled grammar and its process, which ends when this object is garbage-collected.

    Attributes:
        num_bytes: the process's private memory.
    """

    def __init__(
        self, worker: Worker, spec: GrammarSpec, num_bytes: int, rows: int, mask_bytes: int
    ) -> None:
        self._worker = worker
        self._spec = spec
        self._fork = partial(_fork, worker, rows, mask_bytes)
        self._follower: Follower | None = None
        self.num_bytes = num_bytes
        weakref.finalize(self, worker.end)

    @property
    def is_alive(self) -> bool:
        """Whether the process is alive."""
        return not self._worker.has_ended

    def begin(self) -> GrammarState:
        """A new state at the start of the grammar; does not block. Engine thread only."""
        if self._follower is None or self._follower.is_closed:
            self._follower = Follower(self._fork)
        return GrammarState(self._follower, self._spec)


class Grammars:
    """Compiles grammars; thread-safe.

    Args:
        tokenizer: of the checkpoint.
        vocabulary: number of logits.
        stop_ids: tokens that end an answer.
        max_sequences: maximum number of sequences in flight.
    """

    def __init__(
        self,
        tokenizer: Phi3VTokenizer,
        vocabulary: int,
        stop_ids: frozenset[int],
        max_sequences: int,
    ) -> None:
        # One row for the sequence being worked on, and two per sequence: a number can be reused only
        # when all messages about it have been read.
        self._rows = 1 + 2 * max_sequences
        self._mask_bytes = mask_bytes(vocabulary)
        words = [tokenizer.token_bytes(i) for i in range(vocabulary)]
        inner = tokenizer.inner_json()
        self._zygote = Zygote(WORKER, words, sorted(stop_ids), inner)
        self._kept: OrderedDict[Key, Grammar] = OrderedDict()
        self._compiling: dict[Key, Future[None]] = {}
        self._all: weakref.WeakSet[Grammar] = weakref.WeakSet()
        self._lock = threading.RLock()

    def compile(
        self, spec: GrammarSpec, salt: str = "", unwanted: threading.Event | None = None
    ) -> Grammar:
        """Compile a grammar, or return the cached one; may take seconds.

        Args:
            spec: the grammar's source.
            salt: only requests with the same salt share the grammar.
            unwanted: set when the request is cancelled.

        Raises:
            GrammarError: it is invalid, not supported, or too complex.
            OverloadedError: the grammars in use take too much memory.
            CancelledError: the request was cancelled.
        """
        if len(spec.source) > LARGEST_SOURCE:
            raise spec.error(
                f"it has {len(spec.source)} characters, the limit is {LARGEST_SOURCE}; shorten it"
            )
        unwanted = unwanted or threading.Event()
        key = (salt, spec.kind, spec.source)
        done: Future[None] = Future()
        while (other := self._claim(key, done)) is not done:
            if isinstance(other, Grammar):
                return other
            while not wait([other], LOOK_EVERY).done:
                _require(unwanted)
        try:
            grammar = self._compile(spec, unwanted)
            self._keep(key, grammar)
            return grammar
        finally:
            with self._lock:
                del self._compiling[key]
            done.set_result(None)

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._kept.clear()
        self._zygote.close()

    def _claim(self, key: Key, done: Future[None]) -> Grammar | Future[None]:
        """The cached grammar; or another thread's future; or ``done`` if the caller must compile."""
        with self._lock:
            grammar = self._kept.get(key)
            if grammar is not None and grammar.is_alive:
                self._kept.move_to_end(key)
                return grammar
            self._kept.pop(key, None)  # its process was killed
            return self._compiling.setdefault(key, done)

    def _keep(self, key: Key, grammar: Grammar) -> None:
        with self._lock:
            self._all.add(grammar)
            self._kept[key] = grammar
            while len(self._kept) > KEPT or _bytes(self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)

    def _compile(self, spec: GrammarSpec, unwanted: threading.Event) -> Grammar:
        with self._lock:
            taken = _bytes(self._all)
        if taken > MOST_BYTES:
            raise OverloadedError(
                f"the grammars in use take {taken} bytes, the limit is {MOST_BYTES}; "
                "try again in a moment"
            )
        try:
            worker = self._zygote.fork()
        except WorkerError as error:
            raise OverloadedError(f"{error}; try again in a moment") from error
        try:
            request = {"kind": spec.kind, "source": spec.source}
            worker.connection.send_bytes(json.dumps(request).encode())
            reply = self._receive(worker, unwanted)
            if "bytes" in reply:
                return Grammar(worker, spec, reply["bytes"], self._rows, self._mask_bytes)
            raise self._error(worker, spec, reply["error"], unwanted)
        except (OSError, EOFError, ValueError, KeyError) as error:  # including an invalid reply
            worker.end()
            raise spec.error(too_complex("compiling it", COMPILE_SECONDS)) from error
        except BaseException:
            worker.end()
            raise

    def _error(
        self, worker: Worker, spec: GrammarSpec, reason: str, unwanted: threading.Event
    ) -> GrammarError:
        place: list[str | int] = []
        if spec.kind in ("json_schema", "calls"):
            # Finding the invalid part of the schema may fail.
            with contextlib.suppress(OSError, EOFError, ValueError, KeyError):
                place = self._receive(worker, unwanted)["place"]
        return spec.error(reason, tuple(place))

    @staticmethod
    def _receive(worker: Worker, unwanted: threading.Event) -> dict[str, Any]:
        """Receive a message; raises OSError, EOFError, ValueError or CancelledError."""
        deadline = time.monotonic() + COMPILE_TIMEOUT
        while not readable(worker.socket, LOOK_EVERY):
            _require(unwanted)
            if time.monotonic() > deadline:
                raise TimeoutError
        reply = json.loads(worker.connection.recv_bytes(LONGEST_REPLY))
        if not isinstance(reply, dict):
            raise ValueError("not a JSON object")
        return reply


def _fork(worker: Worker, rows: int, mask_bytes: int) -> tuple[socket.socket, NDArray[np.uint8]]:
    """Fork a process that follows sequences; returns the connection and shared memory."""
    mine, theirs = socket.socketpair()
    with theirs, _shared_file(rows * mask_bytes) as file:
        with contextlib.suppress(OSError):  # the worker is dead, which receive() notices
            socket.send_fds(worker.socket, [BEGIN], [theirs.fileno(), file])
        shared = np.frombuffer(mmap.mmap(file, 0), np.uint8).reshape(rows, mask_bytes)
    shared[0].view(np.int32)[0] = NOBODY
    return mine, shared


@contextlib.contextmanager
def _shared_file(size: int) -> Iterator[int]:
    """A file to share memory with, in memory if the system supports that."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("masks")
    else:
        file, name = tempfile.mkstemp()
        Path(name).unlink()
    try:
        os.ftruncate(file, size)
        yield file
    finally:
        os.close(file)


def _require(unwanted: threading.Event) -> None:
    if unwanted.is_set():
        raise CancelledError


def _bytes(grammars: Iterable[Grammar]) -> int:
    return sum(grammar.num_bytes for grammar in grammars)
