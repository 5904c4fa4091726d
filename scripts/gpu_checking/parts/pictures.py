"""How long a large picture waits for its first token, alone and beside streams, and streams for it.

The prompt is ready when the clock starts: the time of decoding and cutting the picture on the host is
given separately.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from itertools import pairwise

from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.phi3v.inputs.chat import Message
from model.phi3v.inputs.processing import PromptInputs
from model.phi3v.network import make_network
from scripts.benchmarks.harness.driver import greedy
from scripts.benchmarks.harness.pictures import LARGE, picture
from scripts.benchmarks.harness.report import Report
from scripts.gpu_checking.device import name_of, synchronize
from scripts.gpu_checking.engines import (
    make_engine,
    prefill_chunk,
    processor_for,
    random_model,
    start_decoding,
    step,
    tokens_that_fit,
)
from scripts.gpu_checking.options import Options

STREAMS = 16
ALONE, BESIDE = 3, 3  # pictures measured
LENGTH = {"cuda": 500, "cpu": 16}  # tokens of the streams' prompts
NORMAL = 40  # steps before the pictures
STREAM_TOKENS = 1500
WINDOW = 4608


class Clock:
    """When the tokens of each request come.

    Args:
        engine: whose steps are watched.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.stamps: defaultdict[int, list[float]] = defaultdict(list)

    def step(self) -> None:
        """Run a step."""
        done = step(self._engine)
        now = time.perf_counter()
        for number, tokens in done:
            self.stamps[number] += [now] * tokens

    def ask(self, number: int, prompt: PromptInputs) -> tuple[float, float]:
        """Seconds to the first token of an answer, and the longest gap of all streams until then."""
        asked = time.perf_counter()
        self._engine.add(number, prompt, greedy(1))
        while not self.stamps[number]:
            self.step()
        if self._engine.has_work:  # the streams' gap goes on until their next token
            self.step()
        gaps = [
            after - before
            for stream in range(STREAMS)
            for before, after in pairwise(self.stamps[stream])
            if after >= asked
        ]
        return self.stamps[number][0] - asked, max(gaps, default=0.0)


def check(options: Options) -> Report:
    """Measure pictures alone, then beside streams."""
    device = options.device
    network = make_network(random_model(options.preset, device, options.dtype))
    processor = processor_for(options.preset)
    tokens = STREAMS * (LENGTH[device.type] + STREAM_TOKENS) + WINDOW
    sizes = EngineConfig(
        WINDOW,
        num_blocks=max(WINDOW, min(tokens, tokens_that_fit(network))) // 16,
        max_num_seqs=STREAMS + 1,
        prefill_chunk=prefill_chunk(device),
        embedding_cache_memory=0,
    )
    engine = make_engine(network, processor, sizes)
    started = time.perf_counter()
    prompts = [_prompt(engine, seed) for seed in range(1 + ALONE + BESIDE)]
    host = (time.perf_counter() - started) / len(prompts)
    clock, numbers = Clock(engine), range(STREAMS, STREAMS + len(prompts))
    waiting = iter(zip(numbers, prompts, strict=True))
    clock.ask(*next(waiting))  # warm up: libraries choose and load their kernels
    alone = [clock.ask(*next(waiting))[0] for _ in range(ALONE)]
    start_decoding(engine, [LENGTH[device.type]] * STREAMS, STREAM_TOKENS)
    synchronize(device)
    for _ in range(NORMAL):
        clock.step()
    gaps = [after - before for n in range(STREAMS) for before, after in pairwise(clock.stamps[n])]
    beside = [clock.ask(*next(waiting)) for _ in range(BESIDE)]
    return _report(options, len(prompts[0].token_ids), host, alone, gaps, beside)


def _report(
    options: Options,
    tokens: int,
    host: float,
    alone: list[float],
    gaps: list[float],
    beside: list[tuple[float, float]],
) -> Report:
    report = Report(
        "pictures",
        f"prompts of {tokens} tokens about pictures of {LARGE[0]} x {LARGE[1]}, of the size "
        f"{options.preset_name} in {name_of(options.dtype)}",
        ["", "median", "longest"],
    )
    figures = {
        "time to first token alone, ms": alone,
        f"time to first token beside {STREAMS} streams, ms": [ttft for ttft, _ in beside],
        "gap of the streams without pictures, ms": gaps,
        "longest gap of the streams beside a picture, ms": [gap for _, gap in beside],
    }
    for what, seconds in figures.items():
        report.rows.append([what, 1000 * statistics.median(seconds), 1000 * max(seconds)])
    report.notes = [
        "goals: beside streams at most 2.5 times as long as alone; gaps of at most three steps or "
        "50 ms, whichever is longer",
        f"decoding, cutting and tokenizing on the host: {1000 * host:.0f} ms more for each picture",
    ]
    report.data = {"seconds": figures, "host_seconds": host}
    return report


def _prompt(engine: Engine, seed: int) -> PromptInputs:
    message = Message("user", "What is in this picture?", (picture(LARGE, seed),))
    return engine.processor([message], WINDOW - 1)
