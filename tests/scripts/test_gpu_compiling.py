"""Every kernel compiles for every generation of GPUs, fits, and reads memory 16 bytes at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton")

from tests.support.servers.live_server import ROOT

TURING = 75  # has no asynchronous copies and no bfloat16: supported, not fast


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "scripts.gpu_compiling"]
    return subprocess.run([*program, *flags], cwd=ROOT, capture_output=True, text=True, check=False)


def usages(*flags: str) -> list[dict[str, Any]]:
    done = run("--json", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def check(row: dict[str, Any]) -> None:
    usage = row["usage"]
    assert usage["spilled"] == 0, row
    assert usage["wide_loads"] > 0, row
    if row["kernel"].startswith("sample_rows"):
        assert usage["blocks"] >= 1, row  # by design: a row of logits fills the registers
        return
    assert usage["registers"] <= 65536 // (2 * usage["threads"]), row
    assert usage["blocks"] >= 2, row
    if row["kernel"].startswith(("add_rms_norm", "silu_gate")):
        assert usage["narrow_loads"] == 0, row
    elif row["architecture"] > TURING:
        assert 2 * usage["wide_loads"] >= usage["narrow_loads"], row


def test_one_kernel() -> None:
    rows = usages("--architectures", "75", "90", "--kernels", "silu_gate")
    assert [(row["architecture"], row["dtype"]) for row in rows] == [
        (75, "float16"),
        (90, "bfloat16"),
    ]
    for row in rows:
        check(row)


def test_the_table() -> None:
    done = run("--architectures", "80", "--kernels", "silu_gate")
    assert done.returncode == 0, done.stderr
    assert "| silu_gate | sm_80 | bfloat16 | 128 |" in done.stdout
    assert "compiling: 100%" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_kernels_on_all_architectures() -> None:
    rows = usages()
    assert {row["architecture"] for row in rows} == {75, 80, 86, 89, 90, 100}
    assert {row["kernel"].split(",")[0] for row in rows} == {
        "add_rms_norm",
        "split_rope_store",
        "silu_gate",
        "paged_decode",
        "sample_rows",
    }
    for row in rows:
        check(row)
