"""The zygote: a process that forks workers, and never handles untrusted input itself."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import pkgutil
import signal
import socket
from multiprocessing.connection import Connection

from model.confined.zygote import COMMAND, FORK, KILL, READY, Work


def main(descriptor: int) -> None:
    """Fork and kill workers at the server's command, until it closes the connection."""
    # The server ends its workers. Signals from a service manager would end requests in flight.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    opened = os.open(os.devnull, os.O_RDWR)
    while opened <= 2:  # a standard stream is closed; do not let a socket take its number
        opened = os.open(os.devnull, os.O_RDWR)
    os.close(opened)
    control = socket.socket(fileno=descriptor)
    with Connection(os.dup(descriptor)) as connection:
        name, arguments = pickle.loads(connection.recv_bytes())
        work: Work = pkgutil.resolve_name(name)(*arguments)
        gc.collect()
        gc.freeze()  # garbage collection would copy shared pages
        connection.send_bytes(READY)
    numbers: dict[int, int] = {}  # process id to worker number

    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                numbers.pop(pid, None)

    signal.signal(signal.SIGCHLD, reap)
    while True:
        command, descriptors, _, _ = socket.recv_fds(control, COMMAND.size, 1)
        if not command:
            return
        # Block SIGCHLD, so that no process id is reaped and reused before the kill.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        kind, number = COMMAND.unpack(command)
        if kind == KILL:
            for pid, other in numbers.items():
                if other == number:
                    os.kill(pid, signal.SIGKILL)
        elif kind == FORK and descriptors:
            forked = fork(socket.socket(fileno=descriptors[0]), control, work)
            if forked is not None:
                numbers[forked] = number
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def fork(theirs: socket.socket, parents: socket.socket, work: Work) -> int | None:
    """Fork a process that runs ``work(theirs)`` and exits; returns its id, or None on failure.

    Args:
        theirs: the worker's end of its connection; closed in this process.
        parents: a connection of this process; closed in the worker.
    """
    try:
        pid = os.fork()
    except OSError:  # too many processes; the other end sees a closed connection
        theirs.close()
        return None
    if pid == 0:
        status = 1
        try:
            parents.close()
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies of its own children
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)  # crash messages of libraries may quote untrusted input
            work(theirs)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    return pid
