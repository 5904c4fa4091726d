"""Questions, and how they refer to things."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.demo_training.data.answers import Answer, noun
from scripts.demo_training.data.scenes import Scene, Thing


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Attributes:
        kind: kind of question.
        text: as a user might type it.
        answer: the right answer.
        subject: the thing it is about, which a follow-up may call "it".
    """

    kind: str
    text: str
    answer: Answer
    subject: Thing | None = None


def pick(rng: np.random.Generator, *options: str) -> str:
    """Choose one of the options."""
    return options[int(rng.integers(len(options)))]


def name_of(rng: np.random.Generator, scene: Scene, thing: Thing) -> str | None:
    """A name with "the" that refers only to this thing."""
    if thing.is_glyph:
        return f"the {noun(thing)}"
    others = [other for other in scene.things if other is not thing]
    names = []
    if all(other.name != thing.name for other in others):
        names += [f"the {thing.name}"] * 3
    if all((o.name, o.colour) != (thing.name, thing.colour) for o in others):
        names += [f"the {thing.colour} {thing.name}"] * 2
    if all(other.colour != thing.colour for other in others):
        names += [f"the {thing.colour} shape", f"the {thing.colour} one"]
    return pick(rng, *names) if names else None
