"""Which fast paths work on a device, which the engine uses, and why not the others."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from model.engine.engine import Engine
from model.engine.kv_cache import cuda as kv_cache_cuda
from model.phi3v.configuration import Phi3VConfig
from scripts.benchmarks.harness.driver import load
from scripts.benchmarks.harness.report import Report
from scripts.gpu_checking.device import name_of

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LONGEST_REASON = 160  # characters; torch's errors may list all backends


def check(tiny: Path, device: torch.device, dtype: torch.dtype) -> Report:
    """Probe torch's paged attention in each dtype, and load engines to see what they use."""
    report = Report("paths", f"fast paths on {device.type}", ["path", "dtype", "found"])
    config = Phi3VConfig.from_pretrained(tiny)
    for probed in DTYPES:
        reason = _unsupported_reason(config, probed, device)
        found = "works" if reason is None else textwrap.shorten(reason, LONGEST_REASON)
        report.rows.append(["paged attention", name_of(probed), found])
    for wanted in dict.fromkeys((dtype, torch.float32)):
        with _warnings() as logged:
            engine = load(tiny, name_of(wanted), 2048, device=device.type)
        for path, found in chosen(engine).items():
            report.rows.append([f"chosen: {path}", name_of(wanted), found])
        notes = [f"logged, {name_of(wanted)}: {line}" for line in logged]
        report.notes += [textwrap.shorten(note, 2 * LONGEST_REASON) for note in notes]
    return report


def chosen(engine: Engine) -> dict[str, str]:
    """The implementations that an engine uses."""
    made = engine.describe()
    rows = ", ".join(map(str, sorted(made.graph_rows)))
    return {
        "keys and values": made.kv_cache,
        "CUDA graphs": f"for {rows} rows" if rows else "none",
        "decoder": made.decoder,
    }


def _unsupported_reason(
    config: Phi3VConfig, dtype: torch.dtype, device: torch.device
) -> str | None:
    try:
        varlen_attn = kv_cache_cuda.find_varlen_attn()
    except ImportError as error:
        return str(error)
    return kv_cache_cuda.unsupported_reason(
        config, kv_cache_cuda.BLOCK_SIZE, dtype, device, varlen_attn
    )


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect warnings of the ``model`` package."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, logger = Keep(logging.WARNING), logging.getLogger("model")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
