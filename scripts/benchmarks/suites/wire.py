"""Streams that a server can carry when the model is fast: processor time per event, and even gaps.

The model's forward pass and sampler are replaced by a pause, as long as a step of a card takes; everything
else of the server runs (``harness.paced_server``). Each token is an event. The client counts bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise

from tqdm import tqdm

from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.processes import Process, start_server
from scripts.benchmarks.harness.report import Figure, Panel, Report, percentile

STREAMS = (1, 16, 64, 256)
RATES = (30, 60, 100, 300)  # steps a second
SECONDS = 6.0  # of each measurement
SETTLING = 2.0  # seconds after the last stream's first token
TARGET = (256, 60)  # streams and steps a second, for which there are targets
MOST_CORES, MOST_GAP = 1.0, 1.5  # the server's cores; the gaps' 95th percentile, in steps


@dataclass
class _Stream(asyncio.Protocol):
    """One request and when the events of its answer came."""

    request: bytes
    stamps: list[float] = field(default_factory=list)
    transport: asyncio.Transport | None = None
    is_lost: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.stamps += [time.perf_counter()] * data.count(b"data: ")

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True


@dataclass(frozen=True)
class Measured:
    """One measurement.

    Attributes:
        cores: processor time of the server per second.
        events: a second, of all streams.
        gap: 95th percentile between two events of a stream, in steps.
    """

    cores: float
    events: float
    gap: float


def run(options: Options) -> Report:
    """See the module."""
    streams = STREAMS[:2] if options.smoke else STREAMS
    rates = RATES[:1] if options.smoke else RATES
    target = (streams[-1], rates[-1]) if options.smoke else TARGET
    report = Report(
        "wire",
        f"streams of events, with a model that only takes time; {describe()}",
        [
            "streams",
            "steps/s",
            "events/s",
            "of those asked",
            "server's cores",
            "µs/event",
            "gap, steps",
        ],
    )
    lines: dict[str, dict[int, list[float]]] = {f"{rate} steps/s": {} for rate in rates}
    for rate in tqdm(rates, desc="wire"):
        server = _start(options, rate)
        try:
            for count in streams:
                found = asyncio.run(_measure(server, count, rate))
                report.rows.append(
                    [
                        count,
                        rate,
                        found.events,
                        f"{100 * found.events / (count * rate):.0f} %",
                        found.cores,
                        1e6 * found.cores / found.events,
                        found.gap,
                    ]
                )
                lines[f"{rate} steps/s"][count] = [found.cores]
                if (count, rate) == target:
                    name = f"{count} x {rate}"
                    report.figures += [
                        Figure(f"{name}: server's cores", found.cores, "at most", MOST_CORES),
                        Figure(f"{name}: gap, steps", found.gap, "at most", MOST_GAP),
                    ]
        finally:
            server.stop()
    report.panels = [Panel("The server's processor time", "streams", "cores", lines)]
    return report


def _start(options: Options, rate: int) -> Process:
    flags = ["--model", "demo", "--max-num-seqs", str(STREAMS[-1]), "--no-prompt-lookup"]
    flags += ["--insecure", "--log-level", "warning", "--max-model-len", "4096"]
    module = "scripts.benchmarks.harness.paced_server"
    return start_server(
        lambda port: [sys.executable, "-m", module, str(rate), "--port", str(port), *flags],
        options.out / "logs" / f"wire-{rate}.log",
        os.environ,
    )


async def _measure(server: Process, count: int, rate: int) -> Measured:
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "stream": True,
        "temperature": 0,
        "max_tokens": int(rate * (SECONDS + SETTLING + 30)),
        "ignore_eos": True,
    }
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n"
    request = f"{head}content-type: application/json\r\n\r\n".encode() + content
    loop = asyncio.get_running_loop()
    with server.awake():
        streams = [
            (await loop.create_connection(lambda: _Stream(request), "127.0.0.1", server.port))[1]
            for _ in range(count)
        ]
        while not all(len(stream.stamps) > 2 for stream in streams):
            lost = next((stream for stream in streams if stream.is_lost), None)
            assert lost is None, "the server refused a stream"
            await asyncio.sleep(0.05)
        await asyncio.sleep(SETTLING)
        begin, spent = time.perf_counter(), server.cpu_seconds()
        await asyncio.sleep(SECONDS)
        end, spent = time.perf_counter(), server.cpu_seconds() - spent
        for stream in streams:
            with contextlib.suppress(AttributeError):
                stream.transport.abort()  # type: ignore[union-attr]
        await asyncio.sleep(0.5)  # until the server has let them go
    stamps = [[at for at in stream.stamps if begin <= at < end] for stream in streams]
    gaps = [later - at for own in stamps for at, later in pairwise(own)]
    return Measured(
        spent / (end - begin), sum(map(len, stamps)) / (end - begin), percentile(gaps, 95) * rate
    )
