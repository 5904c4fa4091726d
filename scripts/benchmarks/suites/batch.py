"""Throughput of ``phi3v-server batch`` compared with the same requests over HTTP.

The server runs throughout, and is paused (SIGSTOP) while a batch runs. Each batch is a new process,
which measures itself from when its model is loaded. HTTP clients request whole answers, one at a time:
as many clients as the server's batch size, and twice as many, so that requests always wait as in a
batch. The batch command has a larger default batch size.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
from tqdm import tqdm

from scripts.benchmarks.harness.load import text
from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.processes import ours, start
from scripts.benchmarks.harness.report import Figure, Panel, Report, median

REQUESTS, SMOKE_REQUESTS = 128, 8
COMPUTED = 16  # the default --max-num-seqs on a CPU
SENTENCE = re.compile(
    r"(\d+) answered, 0 failed, 0 left, 0 by earlier runs; (\d+) tokens in ([\d.]+) s"
)
BATCH = "batch"
Bodies = dict[str, dict[str, Any]]  # by custom_id


def run(options: Options) -> Report:
    """See the module."""
    speeds: dict[str, list[float]] = {f"HTTP, {n} clients": [] for n in (COMPUTED, 2 * COMPUTED)}
    speeds[BATCH] = []
    different = 0
    checkpoint, log = options.checkpoint("bench"), options.out / "batch-server.log"
    server = ours(checkpoint, options.dtype, options.server_flags, log)
    try:
        with server.awake():
            asyncio.run(ask_all(server.url, bodies(options, -1), COMPUTED))  # warm up
        for number in tqdm(range(options.rounds), desc=BATCH):
            asked = bodies(options, number)
            expected: dict[str, str] = {}
            for clients in (COMPUTED, 2 * COMPUTED):
                with server.awake():
                    seconds, expected = asyncio.run(ask_all(server.url, asked, clients))
                speeds[f"HTTP, {clients} clients"].append(tokens(asked) / seconds)
            seconds, answers = run_batch(checkpoint, asked, options)
            speeds[BATCH].append(tokens(asked) / seconds)
            different += sum(answers[name] != expected[name] for name in asked)
    finally:
        server.stop()
    return report_on(speeds, different, options)


def bodies(options: Options, seed: int) -> Bodies:
    """Requests whose answers all have the same length."""
    count = SMOKE_REQUESTS if options.smoke else REQUESTS
    return {
        f"request {number}": {
            "messages": [{"role": "user", "content": text(options.prompt_tokens, seed, number)}],
            "max_tokens": options.new_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        for number in range(count)
    }


def tokens(asked: Bodies) -> int:
    return sum(body["max_tokens"] for body in asked.values())


async def ask_all(url: str, asked: Bodies, clients: int) -> tuple[float, dict[str, str]]:
    """Seconds until the server has answered all requests, and its answers."""
    answers: dict[str, str] = {}

    async def client(waiting: Iterator[tuple[str, dict[str, Any]]]) -> None:
        for name, body in waiting:
            async with session.post(f"{url}/chat/completions", json=body) as response:
                answers[name] = answer_of(await response.json())

    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        waiting = iter(asked.items())
        started = time.perf_counter()
        await asyncio.gather(*(client(waiting) for _ in range(clients)))
        return time.perf_counter() - started, answers


def run_batch(checkpoint: Path, asked: Bodies, options: Options) -> tuple[float, dict[str, str]]:
    """Seconds until a batch has answered all requests, without loading, and its answers."""
    source, target = options.out / "batch-in.jsonl", options.out / "batch-out.jsonl"
    with source.open("w") as file:
        for name, body in asked.items():
            line = {
                "custom_id": name,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(line) + "\n")
    target.unlink(missing_ok=True)
    sizes = ["--model", str(checkpoint), "--dtype", options.dtype, "--max-model-len", "4096"]
    files = [str(source), str(target)]
    log = options.out / "batch.log"
    process = start(
        [sys.executable, "-m", "server", "batch", *sizes, *options.server_flags, *files],
        log,
        os.environ,
        stdout=subprocess.PIPE,
    )
    try:
        said, _ = process.popen.communicate()
    finally:
        process.stop()
    found = SENTENCE.match(said)
    if found is None or (int(found[1]), int(found[2])) != (len(asked), tokens(asked)):
        raise RuntimeError(f"unexpected batch output {said!r}; see {log}")
    results = [json.loads(line) for line in target.open()]
    answers = {r["custom_id"]: answer_of(r["response"]["body"]) for r in results}
    return float(found[3]), answers


def answer_of(body: dict[str, Any]) -> str:
    return str(body["choices"][0]["message"]["content"])


def report_on(speeds: dict[str, list[float]], different: int, options: Options) -> Report:
    """Table, figures and plot."""
    middle = {name: median(values) for name, values in speeds.items()}
    report = Report(
        BATCH,
        f"{len(bodies(options, 0))} requests, {options.new_tokens} new tokens each; "
        f"{options.dtype}; {describe()}",
        ["side", "output tok/s", "batch / this"],
        [[name, speed, middle[BATCH] / speed] for name, speed in middle.items()],
    )
    best = max(speed for name, speed in middle.items() if name != BATCH)
    what = "tok/s, batch / best of HTTP"
    report.figures = [Figure(what, middle[BATCH] / best, "at least", 1.1)]
    if options.dtype == "float32":
        report.figures.append(Figure("answers that differ from HTTP's", different, "at most", 0))
    report.panels = [Panel("Throughput", "", "output tokens/s", {"": speeds})]
    report.data = {"tokens_per_second": speeds, "different": different}
    return report
