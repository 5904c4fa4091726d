"""Resource limits of a worker, which it sets before handling any input."""

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
    """Limit this process permanently.

    Args:
        memory: bytes of address space beyond its current size.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    if sys.platform == "linux":
        limits[resource.RLIMIT_AS] = address_space() + memory
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(
            PR_SET_DUMPABLE, 0, 0, 0, 0
        )  # the user's other processes may not read its memory
    for limit, value in limits.items():
        with contextlib.suppress(OSError, ValueError):  # already lower
            resource.setrlimit(limit, (value, value))


def address_space() -> int:
    """Size of this process's address space, in bytes."""
    return _statm(0)


def resident_memory() -> int:
    """Resident memory of this process, in bytes; 0 if unknown."""
    return _statm(1)


def limit_cpu(seconds: float) -> None:
    """Kill this process after this much more CPU time; each call replaces the previous limit.

    CPU time, not wall-clock time: a busy machine does not count, nor does waiting for work. The signal's
    default action kills the process even inside a library call that never returns.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _statm(column: int) -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[column])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
