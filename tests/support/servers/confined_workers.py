"""The workers that this process or another has had forked."""

from __future__ import annotations

import contextlib

import psutil


def workers(process: psutil.Process | None = None) -> list[psutil.Process]:
    """Those of all zygotes of a process, by default of this one."""
    found: list[psutil.Process] = []
    for zygote in (process or psutil.Process()).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "model.confined" in " ".join(zygote.cmdline()):
                found += zygote.children()
    return found
