"""Training conversations: questions in all styles, follow-ups, system messages, small talk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.demo_training.data.answers import capital
from scripts.demo_training.data.asking import Question
from scripts.demo_training.data.questions import ask, follow_up
from scripts.demo_training.data.scenes import Scene, random_scene
from scripts.demo_training.data.smalltalk import (
    FALLBACK,
    NEEDS_PICTURE,
    beside_the_point,
    small_talk,
)

INSTRUCTIONS = {
    "word": (
        "Answer in one word.", "Answer in one word.", "Answer with one word.", "Reply in one word.",
        "One word only.", "Answer in a single word.", "Use one word.", "Answer with a single word.",
        "Just one word, please.",
    ),
    "json": (
        "Answer as JSON.", "Answer as JSON.", "Answer in JSON.", "Reply as JSON.", "Reply in JSON.",
        "Respond with JSON.", "Give the answer as JSON.", "Use JSON.",
    ),
    "french": (
        "Answer in French.", "Answer in French.", "Reply in French.", "Speak French.", "In French, please.",
        "Respond in French.", "Use French.", "Please answer in French.",
    ),
}  # fmt: skip
_NEUTRAL = (
    "You are a helpful assistant.", "You are a helpful assistant.", "Be concise.", "Be kind.",
    "You are an expert.", "Answer truthfully.", "You answer questions about pictures.",
)  # fmt: skip


@dataclass(frozen=True)
class Exchange:
    """A user turn and its answer; ``taught`` says whether to train on the answer."""

    user: str
    assistant: str
    taught: bool = True


def about_picture(rng: np.random.Generator, scene: Scene) -> list[Exchange]:
    """One to three exchanges about a picture, which comes with the first."""
    style = str(rng.choice(["sentence", "word", "json", "french"], p=[0.58, 0.16, 0.12, 0.14]))
    if rng.random() < 0.05:
        return [Exchange(typed(rng, beside_the_point(rng)), FALLBACK)]
    question = ask(rng, scene)
    if style == "word" and question.kind == "describe":
        style = "sentence"
    asked = instructed(rng, typed(rng, question.text), style)
    exchanges = [Exchange(asked, question.answer.in_style(style))]
    while len(exchanges) < 3 and rng.random() < 0.28:
        question = _next(rng, scene, question)
        if question.kind == "describe" and style == "word":
            break
        exchanges.append(Exchange(typed(rng, question.text), question.answer.in_style(style)))
    return exchanges


def without_picture(rng: np.random.Generator) -> list[Exchange]:
    """One or two exchanges without a picture."""
    exchanges = []
    for _ in range(1 if rng.random() < 0.7 else 2):
        if rng.random() < 0.35:
            question = ask(rng, random_scene(rng))
            said, answer = question.text, NEEDS_PICTURE
            if rng.random() < 0.3:
                style = str(rng.choice(list(INSTRUCTIONS)))
                exchanges.append(Exchange(instructed(rng, typed(rng, said), style), answer))
                continue
        else:
            said, answer = small_talk(rng)
        said = typed(rng, said)
        if rng.random() < 0.15:
            said = f"{_any(rng, _NEUTRAL)}\n{said}"
        exchanges.append(Exchange(said, answer))
    return exchanges


def before_picture(rng: np.random.Generator) -> list[Exchange]:
    """Exchanges before the picture, perhaps about an earlier picture, which is dropped."""
    if rng.random() < 0.3:
        return without_picture(rng)[:1]
    other = ask(rng, random_scene(rng))
    exchange = Exchange(typed(rng, other.text), other.answer.sentence, taught=False)
    if rng.random() < 0.25:
        more = ask(rng, random_scene(rng))
        return [exchange, Exchange(typed(rng, more.text), more.answer.sentence, taught=False)]
    return [exchange]


def _next(rng: np.random.Generator, scene: Scene, last: Question) -> Question:
    if last.subject is not None and rng.random() < 0.65:
        return follow_up(rng, last.subject)
    return ask(rng, scene)


def instructed(rng: np.random.Generator, text: str, style: str) -> str:
    """A question with an instruction for the style: before or after it, or as a system message."""
    if style == "sentence":
        return f"{_any(rng, _NEUTRAL)}\n{text}" if rng.random() < 0.1 else text
    instruction = _any(rng, INSTRUCTIONS[style])
    if rng.random() < 0.08:
        instruction = instruction.lower()
    if rng.random() < 0.12:
        instruction = instruction.rstrip(".")
    sort = rng.random()
    if sort < 0.5:
        return f"{instruction}\n{text}"
    if sort < 0.57:
        return f"{_any(rng, _NEUTRAL)} {instruction}\n{text}"
    return f"{text} {instruction}" if sort < 0.93 else f"{instruction} {text}"


def typed(rng: np.random.Generator, text: str) -> str:
    """Vary capitals, punctuation, courtesies, and words for "picture", as people type."""
    if "picture" in text and rng.random() < 0.45:
        text = text.replace("picture", _any(rng, ("image", "image", "photo", "drawing")))
    courtesy = rng.random()
    if courtesy < 0.03:
        text = f"please, {text}"
    elif courtesy < 0.05 and text[-1] == "?":
        text = f"{text[:-1]}, please?"
    elif courtesy < 0.06:
        text = f"and {text}"
    sort = rng.random()
    if sort < 0.16 and text[-1] in "?.":
        text = text[:-1]
    case = rng.random()
    if case < 0.04:
        return text.upper()
    return capital(text) if case < 0.76 else text


def _any(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
