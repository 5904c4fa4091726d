"""Confined processes for untrusted input: a fault ends only the process it occurs in.

    zygote = Zygote("module:prepare", ...)  # a process that only forks
    worker = zygote.fork()                  # a child that runs what ``prepare`` returned

A zygote has no threads, inherits only a few harmless environment variables, and has imported what its
workers need, so that they start in milliseconds. Workers have limits on memory and on CPU time per task,
and cannot gain privileges. They can still read files and open sockets as the server's user: this
contains faults, but is not a sandbox.
"""

from __future__ import annotations

from model.confined.limits import confine, limit_cpu
from model.confined.zygote import Worker, WorkerError, Zygote

__all__ = ["Worker", "WorkerError", "Zygote", "confine", "limit_cpu"]
