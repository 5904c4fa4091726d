"""Questions about two things: their relative position and size."""

from __future__ import annotations

import numpy as np

from scripts.demo_training.data.answers import choice_answer, yes_answer
from scripts.demo_training.data.asking import Question, name_of, pick
from scripts.demo_training.data.scenes import Scene, Thing

CLEAR_OFFSET = 0.08  # relative to the picture: minimum offset to be left or right of another thing
CLEAR_RATIO = 1.3  # minimum ratio of sizes to be larger or smaller


def _pair(rng: np.random.Generator, scene: Scene) -> tuple[Thing, str, Thing, str] | None:
    if len(scene.shapes) < 2:
        return None
    i, j = rng.choice(len(scene.shapes), 2, replace=False)
    one, other = scene.shapes[i], scene.shapes[j]
    named = [name_of(rng, scene, thing) for thing in (one, other)]
    if named[0] is None or named[1] is None:
        return None
    return one, named[0], other, named[1]


def ask_relation(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Whether one is left of, right of, above or below another."""
    pair = _pair(rng, scene)
    if pair is None:
        return None
    one, first, other, second = pair
    across = abs(one.x - other.x) > CLEAR_OFFSET
    down = abs(one.y - other.y) > CLEAR_OFFSET
    if not across and not down:
        return None
    if across and (not down or rng.random() < 0.6):
        true, false = ("left of", "right of") if one.x < other.x else ("right of", "left of")
    else:
        true, false = ("above", "below") if one.y < other.y else ("below", "above")
    yes = rng.random() < 0.5
    asked = true if yes else false
    if asked.endswith("of"):
        asked = pick(rng, asked, asked, f"to the {asked}", f"on the {asked}")
    elif asked == "below":
        asked = pick(rng, "below", "below", "under", "beneath")
    else:
        asked = pick(rng, "above", "above", "over")
    text = pick(
        rng, f"is {first} {asked} {second}?", f"is {first} {asked} {second}?",
        f"is {first} {asked} {second} in the picture?", f"{first} is {asked} {second}, right?",
        f"would you say that {first} is {asked} {second}?",
    )  # fmt: skip
    return Question("relation", text, yes_answer(yes, f"{first} is {true} {second}"))


def ask_larger(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Which of two is larger or smaller."""
    pair = _pair(rng, scene)
    if pair is None:
        return None
    one, first, other, second = pair
    if max(one.size, other.size) / min(one.size, other.size) < CLEAR_RATIO:
        return None
    smaller = rng.random() < 0.25
    than = pick(rng, "smaller", "smaller") if smaller else pick(rng, "larger", "bigger")
    thing, called = (one, first) if (one.size > other.size) != smaller else (other, second)
    differ = one.name != other.name
    text = pick(
        rng, f"which is {than}, {first} or {second}?", f"which is {than}, {first} or {second}?",
        f"which one is {than}: {first} or {second}?", f"what is {than}, {first} or {second}?",
        f"is {first} or {second} {than}?", f"{first} or {second}: which is {than}?",
        f"which shape is {than}, {first} or {second}?",
    )  # fmt: skip
    word = thing.name if differ else thing.colour
    answer = choice_answer(thing, called, word, "smaller" if smaller else "larger")
    return Question("larger", text, answer, thing)
