"""A few steps of a tiny model under compute-sanitizer, which finds invalid memory accesses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from scripts.benchmarks.harness.report import Figure, Report
from scripts.gpu_checking.options import Options

SECONDS = 120
MODULE = "scripts.gpu_checking.few_steps"
SHOWN = 20  # lines


def check(options: Options) -> Report:
    """Run the program, if it is installed."""
    report = Report("sanitizer", "invalid memory accesses in a few steps", [])
    program = shutil.which("compute-sanitizer")
    if program is None or not options.on_gpu:
        missing = "compute-sanitizer, which is not installed" if options.on_gpu else "a GPU"
        report.notes.append(f"not checked: needs {missing}")
        return report
    checks = ["--tool", "memcheck", "--report-api-errors", "no"]
    command = [program, *checks, sys.executable, "-m", MODULE]
    # With torch's cache of memory an access beyond a tensor would be valid.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        report.notes.append(f"not checked: it took more than {SECONDS} s")
        return report
    output = done.stdout + done.stderr
    found = re.search(r"ERROR SUMMARY: (\d+) error", output)
    if found is None:
        report.notes.append(f"not checked: status {done.returncode}: {output.strip()[-300:]}")
        return report
    report.figures.append(Figure("errors", int(found[1]), "at most", 0))
    if int(found[1]) or done.returncode:
        report.notes += [line for line in output.splitlines() if line.strip()][:SHOWN]
    return report
