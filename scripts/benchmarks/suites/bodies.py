"""How long a stream pauses while the server parses a large request body.

One client reads streams continuously; another sends bodies that are costly to parse. Some are within
the limits and parsed, others refused unparsed. The pause is the longest inter-token gap between sending
a body and the first tokens after its response; the normal pause is measured the same way without a
body.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from itertools import pairwise

import aiohttp
from tqdm import tqdm

from scripts.benchmarks.harness.load import body, text
from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.processes import ours
from scripts.benchmarks.harness.report import Figure, Panel, Report, median

TOKENS = 2000  # per stream
AFTER = 10  # tokens of the stream before and after each body
NORMAL = "nothing"


def request(**more: object) -> bytes:
    messages = [{"role": "user", "content": "hello"}]
    return json.dumps({"messages": messages, "max_tokens": 1, **more}).encode()


NEST = b"[" * 60 + b"]" * 60
BODIES = {
    NORMAL: b"",
    "9 M numbers": b"[" + b"1," * 9_000_000 + b"1]",
    "15 M brackets": b"[" + (NEST + b",") * 250_000 + b"1]",
    "20 MB of a key": request(**{"k" * 20_000_000: 1}),
    "1 M unknown keys": request(**{f"key{i}": 1 for i in range(1_000_000)}),
    "70 k numbers": request(temperature=[1] * 70_000),
    "70 k biases": request(logit_bias={f"key{i}": 1 for i in range(70_000)}),
    "70 k unknown keys": request(**{f"key{i}": 1 for i in range(70_000)}),
    "30 MB of an image": request(metadata="data:image/png;base64," + "A" * 30_000_000),
}


def run(options: Options) -> Report:
    """See the module."""
    log = options.out / "bodies-server.log"
    server = ours(options.checkpoint("tiny"), options.dtype, options.server_flags, log)
    try:
        with server.awake():
            pauses = asyncio.run(measure(server.url, options))
    finally:
        server.stop()
    report = Report(
        "bodies",
        f"longest pause of a stream, {options.rounds} rounds; {describe()}",
        ["body sent meanwhile", "median, ms", "worst, ms"],
    )
    for name, found in pauses.items():
        report.rows.append([name, 1000 * median(found), 1000 * max(found)])
    worst = max(median(found) for found in pauses.values())
    report.figures = [Figure("longest pause, seconds", worst, "at most", 0.2)]
    bars = {name: [1000 * seconds for seconds in found] for name, found in pauses.items()}
    report.panels = [Panel("Pauses of a stream", "", "ms", {"": bars})]
    report.data = dict(pauses)
    return report


async def measure(url: str, options: Options) -> dict[str, list[float]]:
    """Seconds of the longest pause for each body, in each round."""
    pauses: dict[str, list[float]] = {name: [] for name in BODIES}
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:
        stamps: list[float] = []
        reader = asyncio.create_task(read(session, url, stamps))
        for _ in tqdm(range(options.rounds), desc="bodies"):
            for name, payload in BODIES.items():
                await reach(stamps, len(stamps) + AFTER)
                begun = len(stamps) - 1
                if payload:
                    async with session.post(f"{url}/chat/completions", data=payload) as response:
                        await response.read()
                await reach(stamps, len(stamps) + AFTER)
                pauses[name].append(max(after - last for last, after in pairwise(stamps[begun:])))
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
    return pauses


async def reach(stamps: list[float], count: int) -> None:
    while len(stamps) < count:  # noqa: ASYNC110 - the reader sets no event
        await asyncio.sleep(0.001)


async def read(session: aiohttp.ClientSession, url: str, stamps: list[float]) -> None:
    """Append the arrival times of tokens, of one stream after another."""
    async for stamp in tokens(session, url):
        stamps.append(stamp)


async def tokens(session: aiohttp.ClientSession, url: str) -> AsyncIterator[float]:
    number = 0
    while True:
        number += 1
        payload = body(text(20, 0, number), TOKENS)
        async with session.post(f"{url}/chat/completions", data=payload) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    yield time.perf_counter()
