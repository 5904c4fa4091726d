"""Leaks after thousands of random requests on the tiny checkpoint.

Two dozen clients use all features of the async engine: texts that share prefixes, images of several
kinds, several answers, all sampling parameters, penalties, stop strings and log probabilities. One
request in five is dropped at some point, one in twenty before it starts. Caches are small, so that they
fill early. At the end no KV block may be held, and the process must be as large as after the first
fifth, which touches all memory that the engine reserves; free memory that is not yet returned to the
system does not count.
"""

from __future__ import annotations

import asyncio
import ctypes
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
from PIL import Image
from tqdm import tqdm

from model.engine.async_engine import AsyncEngine
from model.engine.engine import Engine
from model.engine.request import SamplingParams
from model.errors import ModelError
from model.phi3v.inputs.chat import Message, MessageImage
from scripts.benchmarks.harness.driver import load
from scripts.benchmarks.harness.load import text
from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.report import Figure, Panel, Report, median

CLIENTS = 24
SAMPLES = 200  # of the process's memory
MIB = 1 << 20


@dataclass
class Soak:
    """Requests by outcome, and the process's memory in MiB by requests done."""

    fates: Counter[str] = field(default_factory=Counter)
    sizes: dict[int, float] = field(default_factory=dict)


def run(options: Options) -> Report:
    """See the module."""
    engine = load(
        options.checkpoint("tiny", num_crops=4),
        options.dtype,
        2048,
        prefix_caching=True,
        kv_cache_memory=0.01,
        embedding_cache_memory=0.001,
    )
    soak = asyncio.run(measure(engine, options.requests))
    held = engine.blocks.num_blocks - engine.blocks.num_free
    sizes = list(soak.sizes.values())
    fifth = max(1, len(sizes) // 5)
    early, late = median(sizes[fifth : 2 * fifth]), median(sizes[-fifth:])
    report = Report(
        "soak",
        f"{options.requests} random requests; {options.dtype}; {describe()}",
        ["requests", *soak.fates, "blocks", "held at the end", "MiB early", "MiB late"],
        [
            [
                options.requests,
                *soak.fates.values(),
                engine.blocks.num_blocks,
                held,
                round(early, 1),
                round(late, 1),
            ]
        ],
    )
    report.figures = [
        Figure("leaked KV blocks", held, "at most", 0),
        Figure("failed requests", soak.fates["failed"], "at most", 0),
        Figure("resident memory, last fifth / second fifth", late / early, "at most", 1.02),
    ]
    curve = {done: [size] for done, size in soak.sizes.items()}
    report.panels = [Panel("Resident memory", "requests done", "MiB", {"": curve})]
    report.data = {"fates": soak.fates, "mib": soak.sizes}
    return report


async def measure(engine: Engine, requests: int) -> Soak:
    soak, runner = Soak(Counter(answered=0, dropped=0, failed=0)), AsyncEngine(engine)
    process, every = psutil.Process(), max(1, requests // SAMPLES)
    with tqdm(total=requests, desc="soak") as bar:

        async def client(numbers: Iterator[int]) -> None:
            for number in numbers:
                soak.fates[await one(runner, random.Random(number))] += 1
                done = soak.fates.total()
                if done % every == 0:
                    give_back_free_memory()
                    soak.sizes[done] = process.memory_info().rss / MIB
                bar.update()

        numbers = iter(range(requests))
        await asyncio.gather(*(client(numbers) for _ in range(CLIENTS)))
    runner.shutdown()  # after the last aborts, which are in the inbox
    return soak


async def one(engine: AsyncEngine, rng: random.Random) -> str:
    """Send one request and read its answer, or drop it; returns the outcome."""
    patience = rng.choice([0, rng.randrange(20)]) if rng.random() < 0.2 else None
    hurry = rng.random() < 0.05
    asking = asyncio.ensure_future(engine.generate(messages(rng), params(rng)))
    try:
        if hurry:
            await asyncio.sleep(rng.random() * 0.005)
            asking.cancel()
        generation = await asking
    except asyncio.CancelledError:
        return "dropped"
    try:
        deltas = 0
        async for _ in generation:
            deltas += 1
            if patience is not None and deltas > patience:
                return "dropped"
    except ModelError:
        return "failed"
    finally:
        generation.close()
    return "answered"


def messages(rng: random.Random) -> list[Message]:
    """A conversation of one or two questions, perhaps with an image; prefixes recur."""
    start = text(rng.randrange(10, 200), 0, rng.randrange(20))
    turns = [Message("user", start, (picture(rng),) if rng.random() < 0.15 else ())]
    if rng.random() < 0.3:
        turns.append(Message("assistant", text(30, 1, rng.randrange(3))))
        turns.append(Message("user", text(rng.randrange(10, 60), 2, rng.randrange(1 << 30))))
    return turns


def give_back_free_memory() -> None:
    """Make glibc return free memory, which fragmentation would otherwise accumulate."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def picture(rng: random.Random) -> MessageImage:
    size = rng.choice([(64, 64), (336, 336), (900, 200), (200, 700), (640, 480)])
    mode, shade = rng.choice(["RGB", "L", "RGBA", "P"]), rng.randrange(64)
    return MessageImage(
        lambda: Image.new(mode, size, shade), num_crops=1 if rng.random() < 0.3 else None
    )


def params(rng: random.Random) -> SamplingParams:
    def perhaps(chance: float, value: Any, otherwise: Any) -> Any:
        return value if rng.random() < chance else otherwise

    return SamplingParams(
        temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
        top_p=perhaps(0.3, 0.9, 1.0),
        top_k=perhaps(0.2, 40, 0),
        min_p=perhaps(0.2, 0.05, 0.0),
        presence_penalty=perhaps(0.1, 0.5, 0.0),
        frequency_penalty=perhaps(0.1, 0.5, 0.0),
        repetition_penalty=perhaps(0.1, 1.1, 1.0),
        logit_bias=perhaps(0.1, {rng.randrange(32000): 5.0}, {}),
        seed=perhaps(0.3, rng.randrange(1 << 30), None),
        max_tokens=rng.randrange(1, 48),
        min_tokens=perhaps(0.1, 4, 0),
        stop=perhaps(0.2, (rng.choice("aeiou"), "zz"), ()),
        ignore_eos=perhaps(0.3, True, False),
        logprobs=perhaps(0.15, rng.randrange(6), None),
        n=perhaps(0.1, 2, 1),
    )
