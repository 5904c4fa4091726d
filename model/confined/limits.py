"""What a worker may take, set by the worker itself before it looks at anything."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38


def confine(memory: int) -> None:
    """Bound what this process takes for the rest of its life.

    Args:
        memory: bytes of address space beyond what it has now.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    if sys.platform == "linux":
        limits[resource.RLIMIT_AS] = address_space() + memory
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # others of this user may not read its memory
    for limit, value in limits.items():
        with contextlib.suppress(OSError, ValueError):  # one that is lower already
            resource.setrlimit(limit, (value, value))


def address_space() -> int:
    """Bytes of address space that this process has."""
    return _statm(0)


def resident_memory() -> int:
    """Bytes of memory that this process has; 0 where the system does not tell."""
    return _statm(1)


def limit_cpu(seconds: float) -> None:
    """End this process once it has taken that much processor time more; to be said anew in time.

    Not wall-clock time: on a busy machine work is not at fault for waiting, and a process that waits
    for work takes none. The signal's default action ends the process whatever it is doing, also
    inside a library that never returns.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _statm(column: int) -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[column])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
