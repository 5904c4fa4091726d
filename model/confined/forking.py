"""The zygote: a process that forks workers, and looks at nothing that a stranger sent."""

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
    """Fork workers and end them as the server says, until it closes the connection."""
    # The server ends its workers; a service manager that signals them too would end answers early.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    opened = os.open(os.devnull, os.O_RDWR)
    while opened <= 2:  # a standard stream was closed, and a socket would take its place
        opened = os.open(os.devnull, os.O_RDWR)
    os.close(opened)
    control = socket.socket(fileno=descriptor)
    with Connection(os.dup(descriptor)) as connection:
        name, arguments = pickle.loads(connection.recv_bytes())
        work: Work = pkgutil.resolve_name(name)(*arguments)
        gc.collect()
        gc.freeze()  # collections would copy pages that workers share
        connection.send_bytes(READY)
    numbers: dict[int, int] = {}  # of workers, by process id

    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                numbers.pop(pid, None)

    signal.signal(signal.SIGCHLD, reap)
    while True:
        command, descriptors, _, _ = socket.recv_fds(control, COMMAND.size, 1)
        if not command:
            return
        # What ends meanwhile is reaped afterwards: until then its process id is nobody else's.
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
    """Fork a process that does ``work`` with ``theirs`` and ends; its id, or None if that fails.

    Args:
        theirs: the worker's end of its connection, closed here.
        parents: a connection of this process alone, closed there.
    """
    try:
        pid = os.fork()
    except OSError:  # too many processes; whoever has the other end finds it closed
        theirs.close()
        return None
    if pid == 0:
        status = 1
        try:
            parents.close()
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # its own children leave nothing behind
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)  # what libraries print when they die may quote a stranger
            work(theirs)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    return pid
