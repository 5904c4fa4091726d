"""Speed with quantized weights: decode steps at batch sizes 1 and 8, and a prompt.

The weights exceed any cache, so a step at batch size 1 takes as long as reading them. A prompt is
compute-bound, and dequantizing its weights adds work.
"""

from __future__ import annotations

import time

from tqdm import tqdm

from model.engine.engine import Engine
from scripts.benchmarks.harness.driver import answer, greedy, load, random_prompts
from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.report import Figure, Panel, Report, median
from scripts.benchmarks.suites.stream import step_seconds

SCHEMES = ("none", "int8", "int4")
PROMPT_TOKENS = 512
STEPS = 32
COLUMNS = ("step, batch 1", "step, batch 8", "prompt")


def run(options: Options) -> Report:
    """See the module."""
    directory = options.checkpoint("large")
    engines = {
        scheme: load(directory, options.dtype, 2048, quantization=scheme) for scheme in SCHEMES
    }
    seconds: dict[str, dict[str, list[float]]] = {
        scheme: {column: [] for column in COLUMNS} for scheme in SCHEMES
    }
    for engine in engines.values():
        _seconds(engine, 4)  # warm up
    for _ in tqdm(range(options.rounds), desc="quantized"):
        for scheme, engine in engines.items():
            for column, found in zip(COLUMNS, _seconds(engine, STEPS), strict=True):
                seconds[scheme][column].append(found)
    report = Report(
        "quantized",
        f"quantized weights of {directory.name}, computed in {options.dtype}; {describe()}",
        ["weights", *(f"{column}, ms" for column in COLUMNS), "tokens/s, batch 1", "batch 8"],
    )
    middle = {
        scheme: [median(found) for found in columns.values()] for scheme, columns in seconds.items()
    }
    for scheme, (one, eight, prompt) in middle.items():
        name = options.dtype if scheme == "none" else scheme
        report.rows.append([name, 1000 * one, 1000 * eight, 1000 * prompt, 1 / one, 8 / eight])
    plain = middle["none"]
    for scheme in SCHEMES[1:]:
        ratio = plain[0] / middle[scheme][0]
        report.figures.append(
            Figure(f"{scheme} / {options.dtype}: tokens/s, batch 1", ratio, "at least", 1.0)
        )
    report.panels = [
        Panel(column, "", "ms", {"": {s: [1000 * x for x in seconds[s][column]] for s in SCHEMES}})
        for column in COLUMNS
    ]
    report.data = {"seconds": seconds}
    return report


def _seconds(engine: Engine, steps: int) -> tuple[float, float, float]:
    """Seconds of a step at batch sizes 1 and 8, and of a prompt."""
    one, eight = (step_seconds(engine, batch, steps) for batch in (1, 8))
    prompts = random_prompts(1, PROMPT_TOKENS, PROMPT_TOKENS)
    started = time.perf_counter()
    answer(engine, prompts, greedy(1))
    return one, eight, time.perf_counter() - started
