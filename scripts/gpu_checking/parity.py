"""Compare a device's answers with the CPU's in float32, and check them in a faster dtype."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from model.demo import CHECKPOINT
from model.engine.engine import Engine
from model.engine.request import SamplingParams, TextDelta
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.processing import PromptInputs
from scripts.benchmarks.harness.driver import answer, greedy, load, random_prompts
from scripts.benchmarks.harness.report import Figure, Report
from scripts.gpu_checking.device import name_of

# Prompt lengths for the tiny checkpoint, whose rope regime changes at 1024 tokens: one answer crosses
# it, and one prompt is beyond.
LENGTHS = (1, 17, 300, 1018, 1100)
NEW_TOKENS = 24
WINDOW = 2048

# A shape, its colour and position, a question, and a word that the right answer contains.
CASES = (
    ("ellipse", "red", (60, 60, 240, 240), "What colour is the circle?", "red"),
    ("rectangle", "blue", (60, 60, 240, 240), "What colour is the square?", "blue"),
    ("ellipse", "green", (60, 60, 240, 240), "What shape is it?", "circle"),
    ("rectangle", "yellow", (60, 60, 240, 240), "What shape is it?", "square"),
)


def check(tiny: Path, device: torch.device, dtype: torch.dtype) -> Report:
    """Compare answers of the tiny checkpoint and of the demo on the CPU and on the device."""
    report = Report(
        "parity",
        f"greedy answers on {device.type} and on the CPU",
        [
            "demo question",
            "CPU, float32",
            f"{device.type}, float32",
            f"{device.type}, {name_of(dtype)}",
        ],
    )
    expected, found = (random_answers(tiny, where) for where in ("cpu", device.type))
    wrong = sum(map(list.__ne__, found, expected))
    report.figures.append(
        Figure(
            f"float32 answers other than the CPU's, of {len(expected)} random", wrong, "at most", 0
        )
    )
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        spread = random_answers(tiny, device.type, gpus=2)
        wrong = sum(map(list.__ne__, expected, spread))
        report.figures.append(Figure("the same on two GPUs", wrong, "at most", 0))
    kinds = (("cpu", "float32"), (device.type, "float32"), (device.type, name_of(dtype)))
    columns = [demo_answers(*kind) for kind in kinds]
    for case, *answers in zip(CASES, *columns, strict=True):
        report.rows.append([case[3], *answers])
    cpu, same, fast = columns
    wrong = sum(map(str.__ne__, same, cpu))
    report.figures += [
        Figure(
            f"float32 answers other than the CPU's, of {len(CASES)} of the demo",
            wrong,
            "at most",
            0,
        ),
        Figure(f"right {name_of(dtype)} answers of the demo", _true(fast), "at least", len(CASES)),
    ]
    return report


def _true(answers: list[str]) -> int:
    return sum(word in said.lower() for (*_, word), said in zip(CASES, answers, strict=True))


def random_answers(tiny: Path, device: str, gpus: int = 1) -> list[list[int]]:
    """Token ids of float32 answers to random texts and an image, computed in one batch."""
    engine = load(tiny, "float32", WINDOW, device=device, pipeline_parallel_size=gpus)
    prompts = [random_prompts(1, length, length)[0] for length in LENGTHS]
    prompts.append(_prompt(engine, lambda: Image.linear_gradient("L"), "look"))
    return [found.token_ids for found in answer(engine, prompts, greedy(NEW_TOKENS))]


def demo_answers(device: str, dtype: str) -> list[str]:
    """The demo's answers about the images of ``CASES``."""
    engine = load(CHECKPOINT, dtype, WINDOW, device=device)
    prompts = [
        _prompt(engine, partial(draw, shape, colour, box), question)
        for shape, colour, box, question, _ in CASES
    ]
    for number, prompt in enumerate(prompts):
        engine.add(number, prompt, SamplingParams(temperature=0, max_tokens=NEW_TOKENS))
    texts = [""] * len(prompts)
    while engine.has_work:
        for output in engine.step():
            if not isinstance(output.result, TextDelta):
                raise output.result
            texts[output.key[0]] += output.result.text
    return texts


def draw(shape: str, colour: str, box: tuple[int, int, int, int]) -> Image.Image:
    """An image of one shape on grey."""
    image = Image.new("RGB", (300, 300), (170, 175, 180))
    getattr(ImageDraw.Draw(image), shape)(box, fill=colour)
    return image


def _prompt(engine: Engine, picture: Callable[[], Image.Image], text: str) -> PromptInputs:
    return engine.processor([Message("user", text, (MessageImage(picture),))], WINDOW)
