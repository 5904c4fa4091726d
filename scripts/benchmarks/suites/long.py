"""Peak memory while prefilling a long prompt, on the tiny checkpoint with a longer context window.

Each prompt runs in a new process. The figure is the growth of its memory after a short prompt, sampled
every few milliseconds: the prompt's KV blocks, which are linear in its length, and a step's working
memory, which must not be quadratic.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
from tqdm import tqdm

from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.report import Figure, Panel, Report, median

WINDOW = 65536
MIB = 1 << 20


def run(options: Options) -> Report:
    """See the module."""
    directory = options.checkpoint("tiny", max_length=WINDOW)
    growth: dict[int, list[float]] = {length: [] for length in options.lengths}
    seconds: dict[int, list[float]] = {length: [] for length in options.lengths}
    fresh = ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    )  # a process never returns all its memory, so none is reused
    with fresh, tqdm(total=options.rounds * len(growth), desc="long") as bar:
        for _ in range(options.rounds):
            for length in growth:
                grown, took = fresh.submit(prefill, directory, options.dtype, length).result()
                growth[length].append(grown)
                seconds[length].append(took)
                bar.update()
    report = Report(
        "long",
        f"peak memory of long prompts; {options.dtype}; {describe()}",
        ["prompt tokens", "growth, MiB", "KiB per token", "seconds"],
    )
    for length, rounds in growth.items():
        middle = median(rounds)
        report.rows.append([length, middle, 1024 * middle / length, median(seconds[length])])
    longest, half = sorted(growth, reverse=True)[:2]
    ratio = median(growth[longest]) / median(growth[half])
    limit = 1.2 * longest / half
    report.figures = [
        Figure(f"growth at {longest} tokens / at {half} tokens", ratio, "at most", limit)
    ]
    report.panels = [
        Panel("Peak memory beyond the start", "prompt tokens", "MiB", {"": growth}),
        Panel("Prefill", "prompt tokens", "seconds", {"": seconds}),
    ]
    report.data = {"growth_mib": growth, "seconds": seconds}
    return report


def prefill(directory: Path, dtype: str, length: int) -> tuple[float, float]:
    """MiB that the process grows by, and seconds to the first token; run in a new process."""
    from scripts.benchmarks.harness.driver import answer, greedy, load, random_prompts

    engine = load(directory, dtype, length + 16)
    answer(engine, random_prompts(1, 600, 0), greedy(2))
    process, peak, done = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    (found,) = answer(engine, random_prompts(1, length, 1), greedy(2))
    done.set()
    watcher.join()
    return (peak - before) / MIB, found.ttft
