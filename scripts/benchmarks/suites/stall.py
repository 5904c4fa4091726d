"""How long running streams stall while an image of about 2,500 tokens is prefilled.

Four streams decode on the async engine, as in the server: their readers share the event loop, and the
image is decoded and cut in a thread pool. The normal gap is the median before the image's request; the
worst gap is the longest of any stream from then until the image's first token. The image's time to
first token is reported too, next to that of an image without other streams.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from itertools import pairwise

from tqdm import tqdm

from model.engine.async_engine import AsyncEngine
from model.engine.request import SamplingParams
from model.phi3v.inputs.chat import Message
from scripts.benchmarks.harness.driver import greedy, load
from scripts.benchmarks.harness.load import text
from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.pictures import LARGE, picture
from scripts.benchmarks.harness.report import Figure, Panel, Report, median, percentile

STREAMS = 4
SETTLING, NORMAL, AFTER = 16, 100, 16  # tokens of each stream, before and after the image
LONGEST = 3000  # tokens of a stream at most
QUESTION = "What is in this picture?"


@dataclass
class Round:
    """Seconds: gaps before the image, (time, gap) pairs during it, and its times to first token."""

    normal: list[float]
    during: list[tuple[float, float]]
    ttft: float
    ttft_alone: float

    @property
    def worst(self) -> float:
        return max(gap for _, gap in self.during)


def run(options: Options) -> Report:
    """See the module."""
    rounds = asyncio.run(measure(options))
    normal = median([median(found.normal) for found in rounds])
    worst = median([found.worst for found in rounds])
    report = Report(
        "stall",
        f"gaps of {STREAMS} streams while an image is prefilled; {options.dtype}; {describe()}",
        [
            "normal gap, ms",
            "normal p99, ms",
            "p50 during, ms",
            "worst, ms",
            "image TTFT, ms",
            "image TTFT alone, ms",
        ],
    )
    report.rows.append(
        [
            1000 * normal,
            1000 * median([percentile(found.normal, 99) for found in rounds]),
            1000 * median([median([gap for _, gap in found.during]) for found in rounds]),
            1000 * worst,
            1000 * median([found.ttft for found in rounds]),
            1000 * median([found.ttft_alone for found in rounds]),
        ]
    )
    ratio = median([found.worst / median(found.normal) for found in rounds])
    report.figures = [Figure("worst gap / normal gap", ratio, "at most", 3.0)]
    curve = {when: [1000 * gap] for when, gap in sorted(rounds[-1].during)}
    report.panels = [Panel("Gaps while the image is prefilled", "seconds", "ms", {"": curve})]
    report.data = {"rounds": [vars(found) for found in rounds]}
    return report


async def measure(options: Options) -> list[Round]:
    """Run a warm-up round, then the measured ones."""
    engine = AsyncEngine(load(options.checkpoint("bench"), options.dtype))
    rounds = [
        await one_round(engine, number)
        for number in tqdm(range(options.rounds + 1), desc="stall (first round warms up)")
    ]
    engine.shutdown()
    return rounds[1:]


async def one_round(engine: AsyncEngine, number: int) -> Round:
    stamps: list[list[float]] = [[] for _ in range(STREAMS)]
    # Drawn beforehand, because drawing would block the event loop.
    pictures = [picture(LARGE, 2 * number + which) for which in (0, 1)]

    async def stream(index: int) -> None:
        messages = [Message("user", text(100, number, index))]
        await read(engine, messages, greedy(LONGEST), stamps[index])

    async def reach(count: int) -> None:
        while min(map(len, stamps)) < count:  # noqa: ASYNC110 - the readers set no event
            await asyncio.sleep(0.01)

    streams = [asyncio.create_task(stream(index)) for index in range(STREAMS)]
    await reach(SETTLING + NORMAL)
    asked = time.perf_counter()
    answered: list[float] = []
    image = [Message("user", QUESTION, (pictures[0],))]
    await read(engine, image, greedy(1), answered)
    await reach(min(map(len, stamps)) + AFTER)
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    alone = time.perf_counter()
    another = [Message("user", QUESTION, (pictures[1],))]
    await read(engine, another, greedy(1), answered)
    normal, during = [], []
    for own in stamps:
        for before, after in pairwise(own[SETTLING:]):
            if after <= asked:
                normal.append(after - before)
            elif before <= answered[0]:
                during.append((after - asked, after - before))
    return Round(normal, during, answered[0] - asked, answered[1] - alone)


async def read(
    engine: AsyncEngine, messages: list[Message], params: SamplingParams, stamps: list[float]
) -> None:
    """Read an answer to its end and record when each token arrives."""
    generation = await engine.generate(messages, params)
    try:
        async for delta in generation:
            stamps += [time.perf_counter()] * len(delta.token_ids)
    finally:
        generation.close()
