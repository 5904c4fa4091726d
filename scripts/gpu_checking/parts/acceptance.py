"""What the official checkpoint answers to the questions that Azure documents; texts are for a person.

Azure's article documents 19 and 2380 prompt tokens. With the public tokenizer they are 23 and 2384,
because it keeps the line breaks after some control tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from model.engine.config import LoadOptions
from model.engine.engine import Engine
from model.engine.loading.load import load_engine
from model.engine.request import SamplingParams, TextDelta
from model.phi3v.inputs.chat import Message, MessageImage
from scripts.benchmarks.harness.pictures import LARGE
from scripts.benchmarks.harness.report import Figure, Report
from scripts.gpu_checking.options import Options

WINDOW = 4096
NEW_TOKENS = 400
# Of the drawn chart: size in billions of parameters, quality in percent.
MODELS = {"Model A": (2, 38), "Model B": (4, 69), "Model C": (7, 62), "Model D": (14, 78)}


class Question(NamedTuple):
    """A documented question.

    Attributes:
        messages: the conversation.
        azure: prompt tokens that Azure's article documents.
        public: prompt tokens with the public tokenizer.
    """

    messages: list[Message]
    azure: int
    public: int


def questions(picture: Path | None) -> list[Question]:
    """The documented questions, about a picture of 1900x1069 or a drawn chart of this size."""
    opened = partial(Image.open, picture) if picture is not None else draw_chart
    chart = MessageImage(opened)
    return [
        Question(
            [
                Message("system", "You are a helpful assistant."),
                Message("user", "How many languages are in the world?"),
            ],
            19,
            23,
        ),
        Question(
            [
                Message(
                    "user",
                    "Which peculiar conclusion about LLMs and SLMs can be extracted from the "
                    "following chart?",
                    (chart,),
                )
            ],
            2380,
            2384,
        ),
    ]


def check(options: Options) -> Report:
    """Ask the documented questions, if there is a checkpoint."""
    report = Report(
        "acceptance",
        "questions that Azure documents, at temperature 0",
        ["question", "prompt tokens", "public tokenizer", "Azure", "tokens of the answer"],
    )
    if options.model is None:
        report.notes.append("needs the official checkpoint: --model FOLDER")
        return report
    loaded = LoadOptions(
        model=str(options.model),
        device="cuda" if options.on_gpu else "cpu",
        max_model_len=WINDOW,
    )
    engine = load_engine(options.model, loaded)
    wrong = 0
    for question in questions(options.picture):
        tokens, said, new_tokens = ask(engine, question.messages)
        wrong += tokens != question.public
        text = question.messages[-1].text
        report.rows.append([text, tokens, question.public, question.azure, new_tokens])
        report.notes.append(f"{text} **{' '.join(said.split())}**")
    report.figures.append(
        Figure("prompts of another length than with the public tokenizer", wrong, "at most", 0)
    )
    return report


def ask(engine: Engine, messages: Sequence[Message]) -> tuple[int, str, int]:
    """Number of prompt tokens, the greedy answer, and its number of tokens."""
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)
    prompt, _ = engine.prepare(messages, params)
    engine.add(0, prompt, params)
    text, count = "", 0
    while engine.has_work:
        for output in engine.step():
            if not isinstance(output.result, TextDelta):
                raise output.result
            text += output.result.text
            count += len(output.result.token_ids)
    return len(prompt.token_ids), text, count


def draw_chart() -> Image.Image:
    """A chart of models' sizes and qualities, of the size of the documented picture."""
    width, height = LARGE
    image = Image.new("RGB", LARGE, "white")
    pen = ImageDraw.Draw(image)
    left, bottom = 160, height - 140
    pen.line([(left, 60), (left, bottom), (width - 60, bottom)], fill="black", width=4)
    pen.text((left, 10), "Quality (%)", fill="black", font_size=36)
    pen.text((width // 2, height - 60), "Size (billion parameters)", fill="black", font_size=36)
    for name, (size, quality) in MODELS.items():
        x, y = left + size * 110, bottom - quality * 10
        pen.ellipse((x - 20, y - 20, x + 20, y + 20), fill="blue")
        pen.text((x + 30, y - 20), f"{name}: {size}B, {quality} %", fill="black", font_size=32)
    return image
