"""Decode speed with weights larger than any cache, where reading them bounds a step.

The limit is one matrix-vector product for each matrix of the same shapes (over a gigabyte), with the
faster of oneDNN with packed weights and plain ``nn.functional.linear``, measured in the same round.
The bandwidth of summing the same bytes is reported for information. A step at batch size 8 also reads
the weights once, so it should take little longer than a step at batch size 1.
"""

from __future__ import annotations

import torch
from tqdm import tqdm

from model.engine.engine import Engine
from scripts.benchmarks.harness.arithmetic import weight_shapes
from scripts.benchmarks.harness.driver import answer, greedy, load, random_prompts
from scripts.benchmarks.harness.machine import WeightReader, describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.report import Figure, Panel, Report, median

PROMPT_TOKENS = 16
ONE, EIGHT = "engine, batch 1", "engine, batch 8"


def run(options: Options) -> Report:
    """See the module."""
    engine = load(options.checkpoint("large"), options.dtype, 2048)
    reader = WeightReader(weight_shapes(engine.network.config), getattr(torch, options.dtype))
    steps: dict[str, list[float]] = {ONE: [], EIGHT: []}
    bandwidths: list[float] = []
    for batch in (1, 8):
        step_seconds(engine, batch, 4)
    for _ in tqdm(range(options.rounds), desc="stream"):
        steps[ONE].append(step_seconds(engine, 1, options.new_tokens))
        for method, seconds in reader.seconds().items():
            steps.setdefault(method, []).append(seconds)
        steps[EIGHT].append(step_seconds(engine, 8, options.new_tokens))
        bandwidths.append(reader.bandwidth())
    middle = {name: median(seconds) for name, seconds in steps.items()}
    limit = min(seconds for name, seconds in middle.items() if name not in (ONE, EIGHT))
    report = Report(
        "stream",
        f"reading {reader.num_bytes / 1e9:.2f} GB of weights per step; {options.dtype}; {describe()}",
        ["side", "ms per step", "GB/s", "tokens/s"],
    )
    for name, seconds in middle.items():
        answers = {ONE: 1, EIGHT: 8}.get(name)
        speed = answers / seconds if answers else ""
        report.rows.append([name, 1000 * seconds, reader.num_bytes / seconds / 1e9, speed])
    report.rows.append(["sum of the weights", "", median(bandwidths) / 1e9, ""])
    report.figures = [
        Figure("batch 1 / limit of reading the weights", limit / middle[ONE], "at least", 0.85),
        Figure("batch 8 / batch 1, tokens/s", 8 * middle[ONE] / middle[EIGHT], "at least", 5.0),
    ]
    milliseconds = {name: [1000 * x for x in seconds] for name, seconds in steps.items()}
    report.panels = [Panel("A pass over all weights", "", "ms", {"": milliseconds})]
    report.data = {"seconds": steps, "bytes": reader.num_bytes, "bandwidths": bandwidths}
    return report


def step_seconds(engine: Engine, batch: int, steps: int) -> float:
    """Mean seconds of a decode step at this batch size."""
    answers = answer(engine, random_prompts(batch, PROMPT_TOKENS, batch), greedy(steps + 1))
    begin = max(found.stamps[0] for found in answers)
    end = min(found.stamps[-1] for found in answers)
    assert {found.stamps[0] for found in answers} == {begin}, (
        "the first tokens must come from one step"
    )
    return (end - begin) / steps
