"""The command line, run to its end."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.servers.live_server import ROOT, check_log


def run(*flags: str, timeout: float = 200, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *flags],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The complaint; the log may stand before it."""
    assert done.returncode != 0
    check_log(done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("phi3v-server: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]
