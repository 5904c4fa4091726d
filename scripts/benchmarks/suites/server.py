"""Streaming chat over HTTP: our server, vLLM on the CPU, and our engine without HTTP.

Three processes with the same decoder run throughout: our server, vLLM with the text-only checkpoint,
and a worker that gives our engine the same prompts. They are measured strictly in turn, and the other
two are paused (SIGSTOP), because an idle server may keep a core busy; the report says how much. Both
servers get the same load client, in a separate process.

A round's time to first token and inter-token latency are the median (p50) and 95th percentile of its
requests; the report has the medians of the rounds. A piece of text may hold several tokens: servers
may combine them, and a token's bytes may be an incomplete character.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.processes import Process, Worker, ask_server, ours, vllm
from scripts.benchmarks.harness.report import Bound, Figure, Panel, Report, median, percentile

OURS, VLLM, WORKER = "ours", "vLLM", "engine without HTTP"
FEWEST_REQUESTS = 8
METRICS = {  # name to function of one measurement
    "output tok/s": lambda found: _sum(found, "new_tokens") / found["seconds"],
    "TTFT p50, ms": lambda found: 1000 * percentile(_all(found, "ttft"), 50),
    "TTFT p95, ms": lambda found: 1000 * percentile(_all(found, "ttft"), 95),
    "ITL p50, ms": lambda found: 1000 * percentile(_gaps(found), 50),
    "ITL p95, ms": lambda found: 1000 * percentile(_gaps(found), 95),
    "prompt tokens": lambda found: _sum(found, "prompt_tokens") / len(found["requests"]),
}
Ask = Callable[..., Any]
Measured = dict[str, dict[str, dict[int, list[float]]]]  # by side, metric and concurrency


def run(options: Options) -> Report:
    """See the module."""
    with contextlib.ExitStack() as stack:
        servers: dict[str, Process] = {}
        logs, dtype = options.out, options.dtype
        servers[OURS] = ours(
            options.checkpoint("bench"), dtype, options.server_flags, logs / "server-ours.log"
        )
        stack.callback(servers[OURS].stop)
        if options.vllm_python is not None:
            twin = options.checkpoint("bench", text_only=True)
            servers[VLLM] = vllm(
                options.vllm_python, twin, dtype, options.preload, logs / "server-vllm.log"
            )
            stack.callback(servers[VLLM].stop)
        worker = Worker(options.checkpoint("bench"), dtype, logs / "server-engine.log")
        stack.callback(worker.process.stop)
        sides: dict[str, Ask] = {
            name: lambda process=process, **job: ask_server(process, **job)
            for name, process in servers.items()
        }
        measured = measure({**sides, WORKER: worker.ask}, options)
    return report_on(measured, servers, options)


def measure(sides: dict[str, Ask], options: Options) -> Measured:
    """Measure each side at each concurrency in each round."""
    measured: Measured = {
        name: {metric: {count: [] for count in options.concurrency} for metric in METRICS}
        for name in sides
    }
    job = {"prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens}
    with tqdm(total=options.rounds * len(options.concurrency) * len(sides), desc="server") as bar:
        for number in range(-1, options.rounds):
            for count in options.concurrency:
                if number < 0 and count != max(options.concurrency):
                    continue  # warm up each side once
                for name, ask in sides.items():
                    requests = max(FEWEST_REQUESTS, 2 * count)
                    seed = 1000 * (number + 1) + count
                    found = ask(concurrency=count, requests=requests, seed=seed, **job)
                    if number < 0:
                        continue
                    for metric, compute in METRICS.items():
                        measured[name][metric][count].append(compute(found))
                    bar.update()
    return measured


def report_on(measured: Measured, servers: dict[str, Process], options: Options) -> Report:
    """Table, figures and plots."""
    report = Report(
        "server",
        f"streaming over HTTP; {options.dtype}, prefix caching off, {options.new_tokens} new "
        f"tokens; {describe()}",
        ["clients", "side", *METRICS],
    )
    middle = {
        name: {
            metric: {count: median(values) for count, values in series.items()}
            for metric, series in metrics.items()
        }
        for name, metrics in measured.items()
    }
    for count in options.concurrency:
        report.rows += [
            [count, name, *(metrics[metric][count] for metric in METRICS)]
            for name, metrics in middle.items()
        ]
    speed, ttft = "output tok/s", "TTFT p50, ms"
    if VLLM in middle:
        bounds: dict[str, Bound] = {speed: "at least", ttft: "at most"}
        for metric, bound in bounds.items():
            report.figures += [
                Figure(
                    f"{metric.split(',')[0]}, ours / vLLM, {count} clients",
                    middle[OURS][metric][count] / middle[VLLM][metric][count],
                    bound,
                    1.0,
                )
                for count in options.concurrency
            ]
        report.notes.append("the goal for tokens/s, ours / vLLM, is 1.25")
    most = max(options.concurrency)
    through = middle[OURS][speed][most] / middle[WORKER][speed][most]
    report.figures.append(
        Figure(f"tok/s over HTTP / engine without HTTP, {most} clients", through, "at least", 0.95)
    )
    report.notes += [
        f"{name} idle: {100 * process.idle_cpu:.0f} % of a core"
        for name, process in servers.items()
    ]
    report.panels = [
        Panel(metric, "clients", metric, {name: measured[name][metric] for name in measured})
        for metric in (speed, ttft, "ITL p50, ms")
    ]
    report.data = {"measured": measured}
    return report


def _all(found: Any, key: str) -> list[float]:
    return [request[key] for request in found["requests"]]


def _sum(found: Any, key: str) -> float:
    return sum(_all(found, key))


def _gaps(found: Any) -> list[float]:
    return [gap for request in found["requests"] for gap in request["gaps"]] or [0.0]
