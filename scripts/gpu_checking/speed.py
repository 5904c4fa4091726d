"""Compare decode speed with memory bandwidth: each step reads all weights once."""

from __future__ import annotations

from pathlib import Path

import torch

from scripts.benchmarks.harness.arithmetic import weight_shapes
from scripts.benchmarks.harness.driver import load
from scripts.benchmarks.harness.machine import fastest
from scripts.benchmarks.harness.report import Report
from scripts.benchmarks.suites.stream import step_seconds
from scripts.gpu_checking.device import name_of, synchronize

BATCHES = (1, 8)
STEPS = 64
COPIED = {"cuda": 1 << 30, "cpu": 1 << 28}  # bytes, more than any cache holds


def check(checkpoint: Path, device: torch.device, dtype: torch.dtype) -> Report:
    """Measure tokens/s of one and of several answers, and compare with the bandwidth's limit."""
    copied = copy_bandwidth(device)
    engine = load(checkpoint, name_of(dtype), 2048, device=device.type)
    shapes = weight_shapes(engine.network.config)
    read = sum(rows * columns for rows, columns in shapes) * dtype.itemsize
    roof = copied / read
    report = Report(
        "speed",
        f"{checkpoint.name} in {name_of(dtype)}, {read / 1e9:.3g} GB of weights per step; memory "
        f"bandwidth is {copied / 1e9:.0f} GB/s, so a step takes at least {1000 / roof:.3g} ms",
        ["batch size", "ms per step", "tokens/s", "share of the limit"],
    )
    for batch in BATCHES:
        step_seconds(engine, batch, 4)  # warm up: libraries choose their kernels
        seconds = step_seconds(engine, batch, STEPS)
        share = f"{100 / seconds / roof:.0f} %"
        report.rows.append([batch, 1000 * seconds, batch / seconds, share])
    return report


@torch.inference_mode()
def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes, in total."""
    size = COPIED[device.type]
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))

    def copy() -> None:
        target.copy_(source)
        synchronize(device)

    return 2 * size / fastest(copy, repeats=10)
