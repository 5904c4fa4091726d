"""The server with a random checkpoint of the official size, from startup to a clean shutdown.

Writes the checkpoint first, unless ``--checkpoints`` has it. The server starts, answers a question about
one large image, and then short texts at batch sizes 1 and 8. A step reads all of the decoder's matrices
once, so their size and the machine's bandwidth for such matrices (measured as in ``stream``, while the
server is paused) bound the tokens per second. Memory is the server's peak resident memory: weights, the
used part of the KV cache, and everything else. Startup is faster if the files are in the page cache, as
after writing them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import torch
from tqdm import tqdm

from model.phi3v.configuration import Phi3VConfig
from scripts.benchmarks.harness.arithmetic import weight_shapes
from scripts.benchmarks.harness.load import ask
from scripts.benchmarks.harness.machine import WeightReader, describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.pictures import LARGE, jpeg
from scripts.benchmarks.harness.processes import NAME, Process, ask_server, ours
from scripts.benchmarks.harness.report import Figure, Panel, Report, median

GIB = 1 << 30
WINDOW_GIB = 0.75  # KV cache of 4096 tokens of the official model, per byte of the dtype
BESIDE = 2 * GIB  # bytes for the benchmark itself
LAYERS_READ = 4  # enough to exceed the caches of any CPU
BATCHES = (1, 8)


def run(options: Options) -> Report:
    """See the module."""
    started = time.perf_counter()
    directory = options.checkpoint(options.preset)
    written = time.perf_counter() - started
    weights = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    kv_cache = WINDOW_GIB * getattr(torch, options.dtype).itemsize
    require_memory(weights + int(kv_cache * GIB))
    flags = [*options.server_flags, "--kv-cache-memory", str(kv_cache)]
    server = ours(directory, options.dtype, flags, options.out / "full-server.log")
    try:
        found = measure(server, directory, options)
        found["peak"] = peak_memory(server)
    finally:
        server.stop()
    found |= {
        "checkpoint": directory.name,
        "written": written,
        "weights": weights,
        "kv_cache": int(kv_cache * GIB),
    }
    found["status"] = server.popen.returncode
    return report_on(found, server, options)


def require_memory(size: int) -> None:
    """Exit with an error if the machine would swap."""
    needed, there = size + BESIDE, psutil.virtual_memory().available
    if there < needed:
        raise SystemExit(
            f"full: needs {needed / GIB:.1f} GiB of memory, but {there / GIB:.1f} GiB are available; "
            "stop other programs, or choose a smaller --preset"
        )


def measure(server: Process, directory: Path, options: Options) -> dict[str, Any]:
    """Measure the running server, and the machine's limits."""
    config = Phi3VConfig(**json.loads((directory / "config.json").read_text("utf-8")))
    shapes = weight_shapes(config)
    read = shapes[: 4 * LAYERS_READ]  # each layer has four
    reader = WeightReader(read, getattr(torch, options.dtype))
    step_bytes = sum(rows * columns for rows, columns in shapes)
    step_bytes *= getattr(torch, options.dtype).itemsize
    speeds: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    limits: list[float] = []
    with server.awake():
        picture = asyncio.run(ask_about_picture(server))
    for number in tqdm(range(options.rounds), desc="full"):
        rate = reader.num_bytes / min(reader.seconds().values())
        limits.append(rate / step_bytes)
        for batch in BATCHES:
            found = ask_server(
                server,
                concurrency=batch,
                requests=batch,
                prompt_tokens=options.prompt_tokens,
                new_tokens=options.new_tokens,
                seed=number,
            )
            speeds[batch].append(decode_speed(found["requests"]))
    return {"picture": picture, "speeds": speeds, "limits": limits, "step_bytes": step_bytes}


async def ask_about_picture(server: Process) -> dict[str, Any]:
    """Ask about one large image; returns what ``load.ask`` does."""
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg(LARGE, 0)).decode()
    content = [
        {"type": "text", "text": "What is in this picture?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 16,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        return await ask(session, server.url, json.dumps(body).encode())


def decode_speed(requests: list[dict[str, Any]]) -> float:
    """Output tokens/s of concurrent answers, from when all have a first token."""
    stamps = [list(accumulate([request["ttft"], *request["gaps"]])) for request in requests]
    begin = max(times[0] for times in stamps)
    end = max(times[-1] for times in stamps)
    pieces = sum(stamp > begin for times in stamps for stamp in times)
    new_tokens = sum(request["new_tokens"] for request in requests)  # a piece may be several
    return pieces * new_tokens / sum(map(len, stamps)) / max(end - begin, 1e-6)


def peak_memory(server: Process) -> int:
    """Peak resident bytes of the server, without its image processes."""
    status = Path(f"/proc/{server.popen.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def report_on(found: dict[str, Any], server: Process, options: Options) -> Report:
    """Table, figures and plot."""
    one, eight = (median(found["speeds"][batch]) for batch in BATCHES)
    limit = median(found["limits"])
    room = found["weights"] + found["kv_cache"]
    picture = found["picture"]
    report = Report(
        "full",
        f"a checkpoint of {found['weights'] / 1e9:.2f} GB ({found['checkpoint']}), "
        f"KV cache of {found['kv_cache'] / 1e9:.2f} GB; {options.dtype}; {describe()}",
        ["quantity", "measured"],
        [
            ["time to write the checkpoint, s", found["written"]],
            ["time until the server listens, s", server.seconds_to_listen],
            ["time from listening to ready, s", server.seconds_to_ready - server.seconds_to_listen],
            ["time to ready, s", server.seconds_to_ready],
            ["peak resident memory, GB", found["peak"] / 1e9],
            ["peak resident memory / weights", found["peak"] / found["weights"]],
            [f"{LARGE[0]}x{LARGE[1]} image, prompt tokens", picture["prompt_tokens"]],
            ["image, time to first token, s", picture["ttft"]],
            ["image, decoding, tokens/s", decode_speed([picture])],
            ["tokens/s, batch 1", one],
            ["tokens/s, batch 8", eight],
            [f"limit of reading {found['step_bytes'] / 1e9:.2f} GB per step, tokens/s", limit],
        ],
    )
    report.figures = [
        Figure("peak memory / (weights + KV cache)", found["peak"] / room, "at most", 1.15),
        Figure("tokens/s, batch 1 / limit of reading the weights", one / limit, "at least", 0.85),
        Figure("tokens/s, batch 8 / batch 1", eight / one, "at least", 5.0),
        Figure("failed shutdowns (nonzero exit status)", int(found["status"] != 0), "at most", 0),
    ]
    bars = {f"batch {batch}": values for batch, values in found["speeds"].items()}
    bars["limit, batch 1"] = found["limits"]
    report.panels = [Panel("Decoding", "", "output tokens/s", {"": bars})]
    report.data = {**found, "ready": server.seconds_to_ready, "listening": server.seconds_to_listen}
    return report
