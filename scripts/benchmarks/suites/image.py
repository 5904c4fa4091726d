"""Time to first token of a large image with a tower of the official size, and of a second turn.

A turn starts with the JPEG file and the text, so it includes decoding and cutting into crops, and ends
with the engine's first token. The limit is the time of the turn's arithmetic (see ``arithmetic``) at the
speed of the fastest of a few large torch matrix products of the same dtype, measured in the same round.
The second turn appends the answer and another question, with prefix cache and embedding cache on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

from model.engine.engine import Engine
from model.phi3v.inputs.chat import Message
from scripts.benchmarks.harness.arithmetic import Operations, operations
from scripts.benchmarks.harness.driver import answer, greedy, load
from scripts.benchmarks.harness.machine import describe, matrix_rate
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.pictures import LARGE, picture
from scripts.benchmarks.harness.report import Figure, Panel, Report, median

FIRST, LIMIT, SECOND = "first turn", "its arithmetic", "second turn"


@dataclass
class Turn:
    """One turn: seconds of preparation and to the first token, its operations and its answer."""

    prepared: float
    ttft: float
    tokens: int
    operations: Operations | None
    text: str


def run(options: Options) -> Report:
    """See the module."""
    engine = load(options.checkpoint("bench-tower"), options.dtype, prefix_caching=True)
    first: list[Turn] = []
    second: list[Turn] = []
    rates: list[float] = []
    warm = [Message("user", "What is this?", (picture((300, 300), 0),))]
    ask(engine, warm)
    ask(engine, warm)
    for number in tqdm(range(options.rounds), desc="image"):
        rates.append(matrix_rate(getattr(torch, options.dtype)))
        question = Message("user", "What is in this picture?", (picture(LARGE, number + 1),))
        first.append(ask(engine, [question]))
        reply = Message("assistant", first[-1].text)
        second.append(ask(engine, [question, reply, Message("user", "What else?")]))
    counted = first[0].operations
    assert counted is not None
    seconds = {
        FIRST: [turn.ttft for turn in first],
        LIMIT: [counted.total / rate for rate in rates],
        SECOND: [turn.ttft for turn in second],
    }
    middle = {name: median(values) for name, values in seconds.items()}
    report = Report(
        "image",
        f"time to first token of a {LARGE[0]}x{LARGE[1]} image; {options.dtype}; {describe()}",
        ["turn", "seconds", "of which preparation", "prompt tokens"],
    )
    for name, turns in ((FIRST, first), (SECOND, second)):
        prepared = median([turn.prepared for turn in turns])
        report.rows.append([name, middle[name], prepared, turns[0].tokens])
    report.rows.append([LIMIT, middle[LIMIT], "", ""])
    report.figures = [
        Figure("first turn / its arithmetic", middle[FIRST] / middle[LIMIT], "at most", 1.25),
        Figure("second turn / first turn", middle[SECOND] / middle[FIRST], "at most", 0.05),
    ]
    report.notes = [
        f"operations: tower {counted.tower / 1e12:.3f}, projector {counted.projector / 1e12:.3f}, "
        f"decoder {counted.decoder / 1e12:.3f} TFLOP; matrix rate {median(rates) / 1e12:.3f} TFLOP/s"
    ]
    report.panels = [Panel("Time to first token", "", "seconds", {"": seconds})]
    report.data = {"seconds": seconds, "rates": rates, "operations": vars(counted)}
    return report


def ask(engine: Engine, messages: list[Message]) -> Turn:
    """Run one turn alone."""
    started = time.perf_counter()
    inputs = engine.processor(messages, engine.config.max_model_len)
    prepared = time.perf_counter() - started
    (found,) = answer(engine, [inputs], greedy(16))
    counted = None
    if inputs.images:
        config, (image,) = engine.network.config, inputs.decoded
        counted = operations(config, image.num_crops, image.num_tokens, len(inputs.token_ids))
    tokenizer = engine.processor.tokenizer
    said = b"".join(map(tokenizer.token_bytes, found.token_ids)).decode("utf-8", "replace")
    return Turn(prepared, prepared + found.ttft, len(inputs.token_ids), counted, said)
