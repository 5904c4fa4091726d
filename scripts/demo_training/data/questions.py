"""Questions about a scene, in many wordings, with right answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scripts.demo_training.data.answers import (
    colour_answer,
    description,
    glyph_answer,
    noun,
    place_answer,
    shape_answer,
    sort_answer,
)
from scripts.demo_training.data.asking import Question, pick
from scripts.demo_training.data.comparisons import ask_larger, ask_relation
from scripts.demo_training.data.scenes import DIGITS, Scene, Thing
from scripts.demo_training.data.single_questions import (
    ask_colour,
    ask_count,
    ask_count_of,
    ask_exists,
    ask_shape,
    ask_where,
)


def _glyph(rng: np.random.Generator, scene: Scene) -> Question | None:
    glyph = scene.glyph
    if glyph is None:
        return None
    sort = noun(glyph)
    if rng.random() < 0.15 and glyph.name not in "01OI":
        text = pick(
            rng, "is it a digit or a letter?", "is this a letter or a digit?",
            "does the picture show a digit or a letter?", "digit or letter?",
        )  # fmt: skip
        return Question("digit or letter", text, sort_answer(glyph), glyph)
    said = sort
    if glyph.name not in "01OI" and rng.random() < 0.6:
        said = pick(
            rng, "digit or letter", "letter or digit", "character", "symbol", "letter or number"
        )
    if sort == "digit" and rng.random() < 0.2:
        said = "number"
    if sort == "letter" and rng.random() < 0.1:
        said = "capital letter"
    text = pick(
        rng, f"what {said} is it?", f"what {said} is this?", f"which {said} is it?",
        f"which {said} is this?", f"what {said} is shown?", f"what {said} is in the picture?",
        f"what {said} do you see?", f"read the {said}.", f"which {said} does the picture show?",
        f"what is the {said}?", f"name the {said}.", f"what {said} does the picture show?",
        f"what {said} can you see in the picture?", f"tell me the {said}.",
    )  # fmt: skip
    return Question(
        "letter" if glyph.name not in DIGITS else "digit", text, glyph_answer(glyph), glyph
    )


def _describe(rng: np.random.Generator, scene: Scene) -> Question | None:
    text = pick(
        rng, "describe the picture.", "describe the picture.", "what is in the picture?",
        "what do you see?", "what does the picture show?", "describe what you see.",
        "what is in this picture?", "tell me what is in the picture.", "describe this picture.",
        "list all shapes with their colours.", "what's in the picture?", "what is this?",
        "name every shape and its color.", "give a description of the picture.",
        "which shapes are in the picture?", "what can you see?", "describe it.",
        "describe the picture in one sentence.", "list the shapes and colors.",
    )  # fmt: skip
    subject = scene.things[0] if len(scene.things) == 1 else None
    return Question("describe", text, description(scene), subject)


KINDS: dict[str, Callable[[np.random.Generator, Scene], Question | None]] = {
    "colour": ask_colour, "shape": ask_shape, "count": ask_count, "count of": ask_count_of,
    "exists": ask_exists, "where": ask_where, "relation": ask_relation, "larger": ask_larger,
    "glyph": _glyph, "describe": _describe,
}  # fmt: skip
_SHAPE_WEIGHTS = {
    "colour": 1.0, "shape": 1.0, "count": 0.8, "count of": 1.0, "exists": 1.2, "where": 1.1,
    "relation": 1.3, "larger": 1.2, "describe": 1.6,
}  # fmt: skip
_GLYPH_WEIGHTS = {
    "glyph": 3.0,
    "colour": 1.0,
    "describe": 0.8,
    "where": 0.4,
    "exists": 0.2,
    "count": 0.1,
}


def ask(rng: np.random.Generator, scene: Scene, kind: str | None = None) -> Question:
    """A question about the scene, of the given kind if possible."""
    weights = _GLYPH_WEIGHTS if scene.glyph else _SHAPE_WEIGHTS
    names, parts = list(weights), np.array(list(weights.values()))
    for attempt in range(30):
        chosen = kind if kind and attempt < 10 else str(rng.choice(names, p=parts / parts.sum()))
        question = KINDS[chosen](rng, scene)
        if question is not None:
            return question
    fallback = _describe(rng, scene)
    assert fallback is not None
    return fallback


def follow_up(rng: np.random.Generator, thing: Thing) -> Question:
    """A follow-up question that calls the subject "it"."""
    word = pick(rng, "colour", "color")
    sort = rng.random()
    if sort < 0.4 and not thing.is_glyph:
        text = pick(
            rng,
            "what shape is it?",
            "and what shape is it?",
            "and its shape?",
            "which shape is it?",
        )
        return Question("follow-up", text, shape_answer(thing, "it"), thing)
    if sort < 0.75:
        text = pick(
            rng,
            f"what {word} is it?",
            f"and what {word} is it?",
            f"and its {word}?",
            f"which {word}?",
        )
        return Question("follow-up", text, colour_answer(thing, "it"), thing)
    text = pick(rng, "where is it?", "and where is it?", "and where?", "and its position?")
    return Question("follow-up", text, place_answer(thing, "it"), thing)
