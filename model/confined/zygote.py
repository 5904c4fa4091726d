"""The server's side: starts the zygote at first use, and makes it fork workers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import select
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

START_TIMEOUT = 60.0  # seconds until a zygote is ready, even on a busy machine
COMMAND = struct.Struct("<cQ")  # command and worker number
FORK, KILL = b"f", b"k"
READY = b"r"
MAIN = "from model.confined.forking import main; main(int(__import__('sys').argv[1]))"
# Inherited environment variables; others may hold keys and tokens.
INHERITED = ("PATH", "LANG", "TZ", "TMPDIR", "MALLOC_ARENA_MAX")
INHERITED_PREFIXES = ("LC_", "LD_", "PYTHON", "OPENBLAS_", "COVERAGE_")

Work = Callable[[socket.socket], None]  # a worker's function of its end of the connection


class WorkerError(Exception):
    """A worker could not be started."""


class Worker:
    """A process forked by a zygote.

    Attributes:
        socket: connection to the process, which exits when it is idle and this is closed.
        connection: the same, for messages.
    """

    def __init__(self, mine: socket.socket, kill: Callable[[], None]) -> None:
        self.socket = mine
        self.connection = Connection(os.dup(mine.fileno()))
        self._kill = kill

    @property
    def has_ended(self) -> bool:
        """Whether the process is dead; call only when no message is expected."""
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def end(self) -> None:
        """Kill the process; idempotent."""
        self._kill()
        self.connection.close()
        self.socket.close()


class Zygote:
    """A process that forks workers. Thread-safe.

    Args:
        prepare: ``module:function``; called once in the zygote, it returns the workers' function.
        arguments: of ``prepare``.
    """

    def __init__(self, prepare: str, *arguments: object) -> None:
        self._prepare = (prepare, arguments)
        self._running: _Running | None = None
        self._lock = threading.RLock()
        self._count = 0

    def fork(self) -> Worker:
        """Start a worker; starts the zygote first if necessary.

        Raises:
            WorkerError: the worker cannot be started.
        """
        with self._lock:
            try:
                mine, theirs = socket.socketpair()
                with theirs:
                    kill = self._fork(theirs)
                return Worker(mine, kill)
            except OSError as error:
                raise WorkerError(f"failed to start a worker process: {error}") from error

    def close(self) -> None:
        """End the zygote; workers end when their connections are closed."""
        with self._lock:
            if self._running is not None:
                self._running.end()
                self._running = None

    def _fork(self, theirs: socket.socket) -> Callable[[], None]:
        """Fork a worker that gets ``theirs``; returns a function that kills it."""
        self._count += 1
        number = self._count
        try:
            running = self._start()
            running.command(FORK, number, theirs)
        except OSError:  # the zygote has been killed
            self.close()
            running = self._start()
            running.command(FORK, number, theirs)

        def kill() -> None:
            with contextlib.suppress(OSError):  # the zygote may be gone
                running.command(KILL, number)

        return kill

    def _start(self) -> _Running:
        if self._running is None:
            self._running = _Running(self._prepare)
            weakref.finalize(self, self._running.end)
        return self._running


class _Running:
    """A zygote's process; the constructor raises WorkerError if it does not start."""

    def __init__(self, prepare: object) -> None:
        self._lock = threading.RLock()  # held only briefly, because ending a worker must not block
        self._control, theirs = socket.socketpair()
        with theirs:
            # A number above the standard streams, which may be closed.
            passed = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", MAIN, str(passed)],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[passed],
                start_new_session=True,  # Ctrl-C in a terminal must reach only the server
            )
        finally:
            os.close(passed)
        with Connection(os.dup(self._control.fileno())) as connection:
            try:
                connection.send_bytes(pickle.dumps(prepare))
                if not connection.poll(START_TIMEOUT) or connection.recv_bytes() != READY:
                    raise EOFError
            except (OSError, EOFError) as error:
                self.end()
                raise WorkerError("failed to start the process that forks workers") from error

    def command(self, what: bytes, worker: int, theirs: socket.socket | None = None) -> None:
        """Send the zygote a command; raises OSError if it is dead."""
        descriptors = [] if theirs is None else [theirs.fileno()]
        with self._lock:
            socket.send_fds(self._control, [COMMAND.pack(what, worker)], descriptors)

    def end(self) -> None:
        """Kill the zygote; idempotent."""
        self._control.close()
        self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
    }


def readable(channel: socket.socket, seconds: float) -> bool:
    """Wait for data or the end of the connection; False if neither comes within ``seconds``."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(max(0.0, 1000 * seconds)))
