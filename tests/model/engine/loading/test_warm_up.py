"""Kernels are compiled before the first request, not while streams wait."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.servers.live_server import ROOT

pytest.importorskip("triton")


def test_serving_compiles_no_kernel() -> None:
    """Whatever the number of sequences and the addresses of slices are."""
    program = [sys.executable, "-m", "tests.support.engines.compiled_forms"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert int(first.split()[0]) > 10
    assert not others, done.stdout
