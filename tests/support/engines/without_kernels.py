"""A machine on which the CPU's compiled kernels cannot be had."""

from __future__ import annotations

import sys

import pytest


def without_kernels(patch: pytest.MonkeyPatch) -> None:
    """Make imports of them fail."""
    for module in ("model.phi3v.decoder_cpu", "model.engine.kv_cache.cpu"):
        patch.setitem(sys.modules, module, None)
