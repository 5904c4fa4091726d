"""Decode speed with and without prompt lookup, on answers that copy and answers that never repeat.

The checkpoint's answers cycle through known tokens (``model.demo.repeating``), at the usual cost of a
step. For copying, the prompt contains the cycle; for answers that never repeat, the cycle is longer
than the answer. Samples of a random checkpoint repeat a little by chance.
"""

from __future__ import annotations

import time
from pathlib import Path

from tqdm import tqdm

from model.demo.repeating import FIRST_TOKEN, make_repeating
from model.engine.engine import Engine
from model.engine.request import SamplingParams
from model.phi3v.inputs.processing import PromptInputs
from scripts.benchmarks.harness.driver import answer, greedy, load, random_prompts
from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.report import Figure, Panel, Report, median
from scripts.benchmarks.suites.guidance import sibling

COPIED = 200  # length of the cycle that is copied
COPYING, FRESH, NOISE = "copying", "never repeating", "noise"
LEAST = {COPYING: 1.8, FRESH: 0.97, NOISE: 0.97}


def run(options: Options) -> Report:
    """See the module."""
    engines = {
        COPYING: pair(repeating(options, COPIED), options),
        FRESH: pair(repeating(options, 20_000), options),
        NOISE: pair(options.checkpoint("bench"), options),
    }
    speeds: dict[str, dict[str, list[float]]] = {"with": {}, "without": {}}
    rounds = 2 * options.rounds + 1  # more, because the differences are smaller than the noise
    different = 0
    report = Report(
        "lookup",
        f"output tokens/s, {4 * options.new_tokens} new; {options.dtype}; {describe()}",
        ["answers", "concurrent", "with", "without", "ratio", "correct guesses"],
    )
    counts = [count for count in options.concurrency if count in (1, 4, 16)]
    with tqdm(total=len(engines) * len(counts) * rounds, desc="lookup") as bar:
        for kind, both in engines.items():
            for count in counts:
                found: dict[str, list[float]] = {name: [] for name in both}
                for number in range(rounds + 1):
                    said = {}
                    for name, engine in both.items():
                        speed, said[name] = ask(engine, kind, count, 4 * options.new_tokens, number)
                        if number:  # the first warms up
                            found[name].append(speed)
                    different += sum(map(list.__ne__, said["with"], said["without"]))
                    bar.update(number > 0)
                middle = {name: median(values) for name, values in found.items()}
                ratio = middle["with"] / middle["without"]
                totals = both["with"].stats().totals
                right = f"{totals.guessed_right} of {totals.guessed_tokens}"
                report.rows.append([kind, count, middle["with"], middle["without"], ratio, right])
                for name, values in found.items():
                    speeds[name][f"{kind} {count}"] = values
                if kind != COPYING or count == 1:
                    what = f"with / without, {kind}, {count} concurrent"
                    report.figures.append(Figure(what, ratio, "at least", LEAST[kind]))
    most = 0 if options.dtype == "float32" else rounds
    report.figures.append(Figure("answers changed by guessing", different, "at most", most))
    report.panels = [Panel("Prompt lookup", "", "output tokens/s", speeds)]
    report.data = {"tokens_per_second": speeds}
    return report


def repeating(options: Options, period: int) -> Path:
    directory = options.checkpoint(
        "bench", num_crops=period % 13 + 1
    )  # a separate directory per period
    mark = directory / "repeating"
    if not mark.exists():
        make_repeating(directory, period)
        mark.touch()
    return directory


def pair(directory: Path, options: Options) -> dict[str, Engine]:
    without = load(directory, options.dtype, 2048)
    return {"with": sibling(without, prompt_lookup=True), "without": without}


def ask(
    engine: Engine, kind: str, count: int, tokens: int, seed: int
) -> tuple[float, list[list[int]]]:
    """Output tokens/s from when all have a first token, and the answers."""
    prompts = random_prompts(count, 100, seed)
    params = greedy(tokens)
    if kind == NOISE:
        params = SamplingParams(temperature=1.0, seed=seed, max_tokens=tokens, ignore_eos=True)
    if kind == COPYING:
        circle = [FIRST_TOKEN + i for i in range(COPIED)]
        prompts = [PromptInputs(prompt.token_ids + circle) for prompt in prompts]
    started = time.perf_counter()
    answers = answer(engine, prompts, params)
    begun = max(found.stamps[0] for found in answers)
    assert begun > started
    seconds = time.perf_counter() - begun
    return count * (tokens - 1) / seconds, [found.token_ids for found in answers]
