"""Speedup of the compiled CPU kernels over torch's operators, for decode steps and a prompt.

Both sides have the same weights and compute the same answers. Without the kernels the decoder uses
torch's operators (oneDNN), and attention gathers each sequence's keys.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from unittest.mock import patch

from tqdm import tqdm

from model.engine.engine import Engine
from scripts.benchmarks.harness.driver import answer, greedy, load, random_prompts
from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.report import Figure, Panel, Report, median
from scripts.benchmarks.suites.stream import step_seconds

KERNELS, TORCH = "kernels", "torch"
# Imported when an engine is created; without them it falls back to torch.
MODULES = ("model.phi3v.decoder_cpu", "model.engine.kv_cache.cpu")
BATCHES = (1, 8, 16)
PROMPT_TOKENS = 2048


def run(options: Options) -> Report:
    """See the module."""
    directory = options.checkpoint("large")
    engines = {KERNELS: load(directory, options.dtype), TORCH: _without_kernels(directory, options)}
    seconds: dict[str, dict[str, list[float]]] = {side: {} for side in engines}
    for engine in engines.values():
        _seconds(engine, 4)  # warm up
    for _ in tqdm(range(options.rounds), desc="kernels"):
        for side, engine in engines.items():
            for what, found in _seconds(engine, options.new_tokens).items():
                seconds[side].setdefault(what, []).append(found)
    report = Report(
        "kernels",
        f"the decoder of {directory.name} in {options.dtype}; {describe()}",
        ["", f"{KERNELS}, ms", f"{TORCH}, ms", "speedup"],
    )
    for what in seconds[KERNELS]:
        ours, theirs = (median(seconds[side][what]) for side in (KERNELS, TORCH))
        report.rows.append([what, 1000 * ours, 1000 * theirs, theirs / ours])
        report.figures.append(Figure(f"{what}: speedup", theirs / ours, "at least", 1.0))
    report.panels = [
        Panel(
            what,
            "",
            "ms",
            {"": {side: [1000 * x for x in seconds[side][what]] for side in seconds}},
        )
        for what in seconds[KERNELS]
    ]
    report.data = {"seconds": seconds}
    return report


def _without_kernels(directory: Path, options: Options) -> Engine:
    with patch.dict(sys.modules, dict.fromkeys(MODULES)):
        return load(directory, options.dtype)


def _seconds(engine: Engine, steps: int) -> dict[str, float]:
    """Seconds of a step at each batch size, and of a prompt."""
    found = {
        f"a step at batch size {batch}": step_seconds(engine, batch, steps) for batch in BATCHES
    }
    prompts = random_prompts(1, PROMPT_TOKENS, PROMPT_TOKENS)
    started = time.perf_counter()
    answer(engine, prompts, greedy(1))
    return found | {f"a prompt of {PROMPT_TOKENS} tokens": time.perf_counter() - started}
