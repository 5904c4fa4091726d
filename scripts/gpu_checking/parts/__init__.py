"""The parts of the check, each a module with ``check(options) -> Report``."""

from __future__ import annotations

NAMES = (
    "kernels",
    "parity",
    "graphs",
    "paths",
    "steps",
    "pictures",
    "acceptance",
    "peer",
    "sanitizer",
)


class NotCheckedError(Exception):
    """Says why a part cannot be checked on this device; on a GPU this is a failure."""
