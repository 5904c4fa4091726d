"""Compare a device's float32 answers with the CPU's and with those of the original implementation.

The answers of the original are in ``tests/golden``. The demo's answers are checked in a faster dtype too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from model.demo import CHECKPOINT
from model.demo.random_checkpoint import PRESETS, write_checkpoint
from model.engine.engine import Engine
from model.engine.request import SamplingParams, TextDelta
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.image_processing import ImageInputs, ImageProcessor
from model.phi3v.inputs.processing import PromptInputs
from scripts.benchmarks.harness.driver import answer, greedy, load, random_prompts
from scripts.benchmarks.harness.report import Figure, Report
from scripts.gpu_checking.device import name_of
from scripts.gpu_checking.options import Options

# Prompt lengths for the tiny checkpoint, whose rope regime changes at 1024 tokens: one answer crosses
# it, and one prompt is beyond.
LENGTHS = (1, 17, 300, 1018, 1100)
NEW_TOKENS = 24
WINDOW = 2048
GOLDEN = Path(__file__).parents[3] / "tests" / "golden"

# A shape, its colour and position, a question, and a word that the right answer contains.
CASES = (
    ("ellipse", "red", (60, 60, 240, 240), "What colour is the circle?", "red"),
    ("rectangle", "blue", (60, 60, 240, 240), "What colour is the square?", "blue"),
    ("ellipse", "green", (60, 60, 240, 240), "What shape is it?", "circle"),
    ("rectangle", "yellow", (60, 60, 240, 240), "What shape is it?", "square"),
)


def check(options: Options) -> Report:
    """Compare answers of a random model, of the golden cases and of the demo."""
    device, fast = options.device.type, name_of(options.dtype)
    report = Report(
        "parity",
        f"greedy answers on {device} and on the CPU",
        ["demo question", "CPU, float32", f"{device}, float32", f"{device}, {fast}"],
    )
    with tempfile.TemporaryDirectory() as directory:
        tiny = Path(directory)
        write_checkpoint(tiny, PRESETS["tiny"], seed=1, name="phi3v-tiny", num_crops=4)
        expected, found = (random_answers(tiny, where) for where in ("cpu", device))
        _count(report, "float32 answers other than the CPU's, of {} random", found, expected)
        if options.on_gpu and torch.cuda.device_count() > 1:
            spread = random_answers(tiny, device, gpus=2)
            _count(report, "the same on two GPUs, of {}", spread, expected)
    if GOLDEN.exists():
        expected, found = golden_answers(device)
        _count(report, "float32 answers other than the original's, of {}", found, expected)
    kinds = (("cpu", "float32"), (device, "float32"), (device, fast))
    columns = [demo_answers(*kind) for kind in kinds]
    report.rows = [[case[3], *said] for case, *said in zip(CASES, *columns, strict=True)]
    _count(
        report, "float32 answers other than the CPU's, of {} of the demo", columns[1], columns[0]
    )
    right = _true(columns[2])
    report.figures.append(
        Figure(f"right {fast} answers of the demo", right, "at least", len(CASES))
    )
    return report


def _count(report: Report, what: str, found: Sequence[object], expected: Sequence[object]) -> None:
    """Add the number of answers that are not as expected; ``what`` gets the number of answers."""
    wrong = sum(one != other for one, other in zip(found, expected, strict=True))
    report.figures.append(Figure(what.format(len(expected)), wrong, "at most", 0))


def _true(answers: list[str]) -> int:
    return sum(word in said.lower() for (*_, word), said in zip(CASES, answers, strict=True))


def random_answers(tiny: Path, device: str, gpus: int = 1) -> list[list[int]]:
    """Token ids of float32 answers to random texts and an image, computed in one batch."""
    engine = load(tiny, "float32", WINDOW, device=device, pipeline_parallel_size=gpus)
    prompts = [random_prompts(1, length, length)[0] for length in LENGTHS]
    prompts.append(_prompt(engine, lambda: Image.linear_gradient("L"), "look"))
    return [found.token_ids for found in answer(engine, prompts, greedy(NEW_TOKENS))]


def golden_answers(device: str) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the original's answers, and the device's, computed in one batch."""
    cases = json.loads((GOLDEN / "prompts.json").read_text("utf-8"))
    checkpoint = GOLDEN / "tiny-phi3v"
    engine = load(checkpoint, "float32", device=device)
    raw = json.loads((checkpoint / "preprocessor_config.json").read_text("utf-8"))
    prompts = []
    for case in cases:
        images: tuple[ImageInputs, ...] = ()
        if case["image"] is not None:
            process = ImageProcessor(
                case["num_crops"], tuple(raw["image_mean"]), tuple(raw["image_std"])
            )
            images = (process(Image.open(GOLDEN / "images" / case["image"])),)
        # The first image's positions are -1; the original's are other negative ids.
        ids = [max(-1, token_id) for token_id in case["input_ids"]]
        prompts.append(PromptInputs(ids, images))
    expected = [case["greedy_no_cache"] for case in cases]
    found = answer(engine, prompts, greedy(len(expected[0])))
    return expected, [each.token_ids for each in found]


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
