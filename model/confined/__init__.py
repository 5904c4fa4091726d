"""Processes for what strangers send: a fault in one ends that process and nothing else.

    zygote = Zygote("module:prepare", ...)  # a process that only forks
    worker = zygote.fork()                  # a child that does what ``prepare`` returned

A zygote has no threads, none of our environment but a few harmless variables, and what its workers
need already imported, so that a worker starts in milliseconds. Workers have bounds on memory and on
the processor time of each piece of work, and may not gain privileges. They can still read files and
open sockets as the server's user can: this is a wall against faults, not a sandbox.
"""

from __future__ import annotations

from model.confined.limits import confine, limit_cpu
from model.confined.zygote import Worker, WorkerError, Zygote

__all__ = ["Worker", "WorkerError", "Zygote", "confine", "limit_cpu"]
