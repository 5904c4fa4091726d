"""A server whose compiled kernels cannot be cached: it compiles them, logs that, and serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "model.cpu.compiler.jit",
    reason="torch has no OpenMP that kernels could run on",
    exc_type=ImportError,
)

from tests.support.servers.live_server import check_log, start_server
from tests.support.servers.wire import chat

pytestmark = pytest.mark.slow

# The limit stands in for a disk that is full: files are made, and what is written to them is refused.
FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
from server.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("fault", ["full disk", "no directory"])
def test_kernels_that_cannot_be_kept(tiny: Path, tmp_path: Path, fault: str) -> None:
    program = ("-c", FULL) if fault == "full disk" else ("-m", "server")
    nowhere = "/dev/null/nowhere"
    variables: dict[str, Any] = {
        "full disk": {"XDG_CACHE_HOME": str(tmp_path)},
        "no directory": {"XDG_CACHE_HOME": nowhere, "TMPDIR": nowhere},
    }[fault]
    flags = ("--model", str(tiny), "--dtype", "float32")
    live = start_server(*flags, program=program, **variables)
    try:
        assert chat(live).status_code == 200
    finally:
        assert live.stop() == 0
    log = "".join(live.log)
    check_log(log)
    if fault == "full disk":  # otherwise there may be another directory
        assert log.count("failed to cache compiled kernels") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix == ".nbc"]
