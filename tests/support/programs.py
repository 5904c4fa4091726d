"""Programs of the machine: where they are, what they say, and the end of what they leave."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest


def program(*names: str) -> str:
    """Where the first of some programs is that is installed.

    Without any the test is skipped, but not in CI, which installs them.
    """
    for name in names:
        if found := shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
            return found
    return without(f"{names[0]} is not installed")


def without(reason: str) -> NoReturn:
    """Skip a test for what is absent, or fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def run(
    command: Sequence[str | Path],
    timeout: float,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """A program that has ended, whatever its status, with what it printed."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def output(
    command: Sequence[str | Path],
    timeout: float,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """What a program prints that must succeed."""
    done = run(command, timeout, cwd, environment)
    if done.returncode:
        said = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.returncode}\n{said}")
    return done.stdout


def remove(folder: Path) -> None:
    """Remove a folder, and nothing that is mounted in it."""
    output(["rm", "-rf", "--one-file-system", folder], timeout=900)
