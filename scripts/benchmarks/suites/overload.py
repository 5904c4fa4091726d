"""Refusals and inter-token gaps with ten times more clients than the server's capacity.

The server runs few answers at a time, and as many may wait. In the first phase as many clients as it
runs read streams, each one after another; in the second, ten times more clients than its capacity send
requests, and retry refused ones after a pause; the third repeats the first. Accepted streams must be
nearly as even under overload as without it, refusals must be fast, and the last phase must be like the
first. Gaps do not include the time to first token.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
from tqdm import tqdm

from scripts.benchmarks.harness.load import ask, body, text
from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.processes import Process, ours
from scripts.benchmarks.harness.report import Figure, Panel, Report, percentile

COMPUTED, WAITING = 4, 4  # --max-num-seqs and --max-waiting
FACTOR = 10
SECONDS, SMOKE_SECONDS = 20.0, 3.0  # per phase
PAUSE = (0.5, 1.5)  # seconds before a refused client retries
PHASES = ("alone", "flooded", "after")


@dataclass
class Phase:
    """Durations in seconds by outcome, and the number of requests by status."""

    gaps: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


def run(options: Options) -> Report:
    """See the module."""
    flags = ["--max-num-seqs", str(COMPUTED), "--max-waiting", str(WAITING)]
    server = ours(
        options.checkpoint("bench"),
        options.dtype,
        [*options.server_flags, *flags],
        options.out / "overload-server.log",
    )
    try:
        with server.awake():
            phases = asyncio.run(measure(server, options))
    finally:
        server.stop()
    return report_on(phases)


async def measure(server: Process, options: Options) -> dict[str, Phase]:
    seconds = SMOKE_SECONDS if options.smoke else SECONDS
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Content-Type": "application/json"}
    phases: dict[str, Phase] = {}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        await load(session, server.url, COMPUTED, seconds / 4, options)  # warm up
        for name in tqdm(PHASES, desc="overload"):
            clients = FACTOR * (COMPUTED + WAITING) if name == "flooded" else COMPUTED
            phases[name] = await load(session, server.url, clients, seconds, options)
    return phases


async def load(
    session: aiohttp.ClientSession, url: str, clients: int, seconds: float, options: Options
) -> Phase:
    """Run clients for a while; requests in flight at the end are completed."""
    phase, end = Phase(), time.perf_counter() + seconds

    async def client(number: int) -> None:
        rng = random.Random(number)
        while time.perf_counter() < end:
            prompt = text(options.prompt_tokens, rng.randrange(1 << 30), number)
            result = await ask(session, url, body(prompt, options.new_tokens))
            phase.statuses[result["status"]] += 1
            if result["status"] == 200:
                phase.first.append(result["ttft"])
                phase.gaps += result["gaps"]
            else:
                phase.refusals.append(result["seconds"])
                await asyncio.sleep(rng.uniform(*PAUSE))

    await asyncio.gather(*(client(number) for number in range(clients)))
    return phase


def report_on(phases: dict[str, Phase]) -> Report:
    """Table, figures and plots."""
    alone, flooded, after = (phases[name] for name in PHASES)
    report = Report(
        "overload",
        f"{FACTOR} times more clients than the capacity of {COMPUTED} running and {WAITING} waiting "
        f"answers; {describe()}",
        [
            "phase",
            "200",
            "429",
            "others",
            "429 p50, ms",
            "429 p99, ms",
            "ITL p50, ms",
            "p95",
            "p99",
        ],
    )
    for name, phase in phases.items():
        refused = [1000 * seconds for seconds in phase.refusals]
        gaps = [1000 * seconds for seconds in phase.gaps]
        others = phase.statuses.total() - phase.statuses[200] - phase.statuses[429]
        counts = [phase.statuses[200], phase.statuses[429], others]
        refusing = [percentile(refused, percent) if refused else "" for percent in (50, 99)]
        between = [percentile(gaps, percent) for percent in (50, 95, 99)]
        report.rows.append([name, *counts, *refusing, *between])
    total = flooded.statuses.total()
    failed = sum(phase.statuses.total() - phase.statuses[200] for phase in (alone, after))
    failed += total - flooded.statuses[200] - flooded.statuses[429]
    report.figures = [
        Figure("failed requests", failed, "at most", 0),
        Figure("share refused with 429", flooded.statuses[429] / total, "at least", 0.5),
        Figure(
            "time to refuse (429), p99, seconds",
            percentile(flooded.refusals or [0], 99),
            "at most",
            0.5,
        ),
        *(
            Figure(
                f"time between tokens, flooded / alone, p{percent}",
                percentile(flooded.gaps, percent) / percentile(alone.gaps, percent),
                "at most",
                2.0,
            )
            for percent in (50, 95)
        ),
        Figure(
            "time between tokens, after / alone, p50",
            percentile(after.gaps, 50) / percentile(alone.gaps, 50),
            "at most",
            1.25,
        ),
    ]
    report.panels = [
        Panel(
            "Time between tokens",
            "",
            "ms",
            {
                f"p{percent}": {
                    name: [1000 * percentile(phase.gaps, percent)] for name, phase in phases.items()
                }
                for percent in (95, 50)
            },
        ),
        Panel(
            "Refusals",
            "percentile",
            "ms",
            {"": {p: [1000 * percentile(flooded.refusals or [0], p)] for p in range(1, 100)}},
        ),
    ]
    report.data = {name: {**vars(phase), "gaps": len(phase.gaps)} for name, phase in phases.items()}
    return report
