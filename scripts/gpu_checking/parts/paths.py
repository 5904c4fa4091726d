"""Which fast paths work on a device, which the engine uses, and why not the others."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from model.demo.random_checkpoint import PRESETS, config_for, write_checkpoint
from model.engine.engine import Engine
from model.engine.kv_cache import prefill
from model.gpu import support
from model.phi3v.configuration import Phi3VConfig
from scripts.benchmarks.harness.driver import load
from scripts.benchmarks.harness.report import Report
from scripts.gpu_checking.device import name_of
from scripts.gpu_checking.options import Options

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LONGEST_REASON = 160  # characters; torch's errors may list all backends
HEADS, HEAD_DIM = 32, 96  # of the official model


def check(options: Options) -> Report:
    """Probe the paths for the official sizes, and load small engines to see what they use."""
    device = options.device
    report = Report("paths", f"fast paths on {device.type}", ["path", "dtype", "found"])
    report.rows += [["Triton", "", _triton()], ["C compiler", "", _compiler()]]
    config = Phi3VConfig(**config_for(PRESETS["full"], "official"))
    for dtype in DTYPES:
        reason = support.unsupported_reason(config, dtype, device)
        report.rows.append(["kernels", name_of(dtype), _found("supported", reason)])
        report.rows.append(["attention of prompts", name_of(dtype), _prefill(dtype, device)])
    with tempfile.TemporaryDirectory() as directory:
        tiny = Path(directory)
        write_checkpoint(tiny, PRESETS["tiny"], seed=1, name="phi3v-tiny", num_crops=4)
        for dtype in DTYPES:
            _load(tiny, dtype, device, report)
    return report


def _load(tiny: Path, dtype: torch.dtype, device: torch.device, report: Report) -> None:
    """Add what an engine uses, and what it logs."""
    name = name_of(dtype)
    with _warnings() as logged:
        try:
            uses = chosen(load(tiny, name, 2048, device=device.type))
        except Exception as error:  # the other dtypes are still worth a look
            uses = {"engine": textwrap.shorten(f"{type(error).__name__}: {error}", LONGEST_REASON)}
    report.rows += [[f"chosen: {path}", name, found] for path, found in uses.items()]
    notes = [f"logged, {name}: {line}" for line in logged]
    report.notes += [textwrap.shorten(note, 2 * LONGEST_REASON) for note in notes]


def chosen(engine: Engine) -> dict[str, str]:
    """The implementations that an engine uses."""
    made = engine.describe()
    rows = ", ".join(map(str, sorted(made.graph_rows)))
    return {
        "decoder": made.decoder,
        "keys and values": made.kv_cache,
        "CUDA graphs": f"for {rows} rows" if rows else "none",
    }


def _prefill(dtype: torch.dtype, device: torch.device) -> str:
    """The attention of prompts beside the GPU's kernels."""
    if dtype == torch.float32:
        return "sdpa: varlen_attn supports 16 bits only"
    reason = prefill.unsupported_reason(HEADS, HEADS, HEAD_DIM, dtype, device)
    return _found("varlen_attn", None if reason is None else f"sdpa: {reason}")


def _found(works: str, reason: str | None) -> str:
    return works if reason is None else textwrap.shorten(reason, LONGEST_REASON)


def _triton() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _compiler() -> str:
    found = (shutil.which(name) for name in ("cc", "gcc", "clang"))
    return next((path for path in found if path), "none")


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
