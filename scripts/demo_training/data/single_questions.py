"""Questions about single things, and about numbers of things."""

from __future__ import annotations

import numpy as np

from scripts.demo_training.data.answers import (
    Answer,
    colour_answer,
    count_answer,
    noun,
    place_answer,
    shape_answer,
    with_article,
    yes_answer,
)
from scripts.demo_training.data.asking import Question, name_of, pick
from scripts.demo_training.data.scenes import COLOURS, SHAPES, Scene

CLEAR_PLACE = 0.03  # relative to the picture: minimum distance from a third's edge


def ask_colour(rng: np.random.Generator, scene: Scene) -> Question | None:
    """The colour of a thing."""
    word = pick(rng, "colour", "color")
    if rng.random() < 0.05 and scene.shapes:
        absent = [shape for shape in SHAPES if all(t.name != shape for t in scene.things)]
        name = pick(rng, *absent)
        text = pick(rng, f"what {word} is the {name}?", f"which {word} does the {name} have?")
        sentence = f"There is no {name}."
        return Question("absent", text, Answer(sentence, "None", '{"color": null}', "Aucun"))
    things = [
        t for t in scene.things
        if t.is_glyph or all(o.name != t.name or o is t for o in scene.things)
    ]  # fmt: skip
    if not things:
        return None
    thing = things[int(rng.integers(len(things)))]
    name = noun(thing)
    called = [f"the {name}"] * 3
    if len(scene.things) == 1:
        called += ["the shape", "it", "this shape", "the object"]
        if thing.is_glyph:
            called = [f"the {name}"] * 3 + ["it", "the character", "the symbol"]
    said = pick(rng, *called)
    options = [
        f"what {word} is {said}?", f"what {word} is {said}?", f"which {word} is {said}?",
        f"what is the {word} of {said}?", f"tell me the {word} of {said}.",
        f"which {word} does {said} have?", f"{said} is what {word}?", f"{said}: what {word}?",
        f"name the {word} of {said}.", f"what {word} is {said} in the picture?",
        f"what {word} does {said} have?", f"what's the {word} of {said}?",
    ]  # fmt: skip
    return Question("colour", pick(rng, *options), colour_answer(thing, f"the {name}"), thing)


def ask_shape(rng: np.random.Generator, scene: Scene) -> Question | None:
    """The shape of the thing with a colour."""
    shapes = scene.shapes
    alone = [t for t in shapes if all(o.colour != t.colour or o is t for o in shapes)]
    if not alone:
        return None
    thing = alone[int(rng.integers(len(alone)))]
    one = pick(rng, "one", "one", "shape", "thing", "object", "figure")
    said = f"the {thing.colour} {one}"
    if len(shapes) == 1 and rng.random() < 0.4:
        said = pick(rng, "it", "this", "that", "the object", "in the picture", "shown")
    options = [
        f"what shape is {said}?", f"what shape is {said}?", f"which shape is {said}?",
        f"what is the shape of {said}?", f"what is {said}?", f"tell me the shape of {said}.",
        f"{said} is what shape?", f"what kind of shape is {said}?", f"name {said}.",
        f"what shape does {said} have?", f"what form does {said} have?",
    ]  # fmt: skip
    if said in ("in the picture", "shown"):
        options = [*options[:3], f"what shape do you see {said}?"]
    called = f"the {thing.colour} shape"
    return Question("shape", pick(rng, *options), shape_answer(thing, called), thing)


def _how_many(rng: np.random.Generator, what: str) -> str:
    plural = f"{what}es" if what.endswith("cross") else f"{what}s"
    return pick(
        rng,
        f"how many {plural} are there?", f"how many {plural} are there?",
        f"how many {plural} are in the picture?", f"how many {plural} do you see?",
        f"how many {plural} can you see in the picture?", f"count the {plural}.",
        f"what is the number of {plural}?", f"how many {plural}?",
        f"how many {plural} does the picture show?", f"tell me how many {plural} there are.",
    )  # fmt: skip


def ask_count(rng: np.random.Generator, scene: Scene) -> Question | None:
    """The number of shapes."""
    asked = _how_many(rng, pick(rng, "shape", "shape", "shape", "object", "figure", "thing"))
    return Question("count", asked, count_answer(len(scene.shapes), "shape"))


def ask_count_of(rng: np.random.Generator, scene: Scene) -> Question | None:
    """The number of things with a colour, a shape, or both."""
    present = scene.shapes
    thing = present[int(rng.integers(len(present)))] if present and rng.random() < 0.8 else None
    colour = thing.colour if thing else pick(rng, *COLOURS)
    name = thing.name if thing else pick(rng, *SHAPES)
    sort = rng.random()
    if sort < 0.45:
        count, what = sum(t.colour == colour for t in present), f"{colour} shape"
        if rng.random() < 0.5:
            asked = _how_many(rng, f"{colour} {pick(rng, 'one', 'object', 'thing', 'figure')}")
            return Question("count of", asked, count_answer(count, what))
    elif sort < 0.85:
        count, what = sum(t.name == name for t in present), name
    else:
        count = sum((t.name, t.colour) == (name, colour) for t in present)
        what = f"{colour} {name}"
    return Question("count of", _how_many(rng, what), count_answer(count, what))


def ask_exists(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Whether a shape exists."""
    shapes = scene.shapes
    thing = shapes[int(rng.integers(len(shapes)))] if shapes and rng.random() < 0.5 else None
    colour = thing.colour if thing else pick(rng, *COLOURS)
    name = thing.name if thing else pick(rng, *SHAPES)
    if (
        thing is None and shapes and rng.random() < 0.6
    ):  # right shape or colour only: the answer is no
        near = shapes[int(rng.integers(len(shapes)))]
        colour, name = (near.colour, name) if rng.random() < 0.5 else (colour, near.name)
    sort = rng.random()
    if sort < 0.4:
        what, there = name, any(t.name == name for t in shapes)
    elif sort < 0.6:
        one = pick(rng, "shape", "shape", "object", "thing")
        what, there = f"{colour} {one}", any(t.colour == colour for t in shapes)
    else:
        what = f"{colour} {name}"
        there = any((t.name, t.colour) == (name, colour) for t in shapes)
    a = with_article(what) if rng.random() < 0.93 else f"any {what}"
    text = pick(
        rng,
        f"is there {a}?", f"is there {a}?", f"is there {a} in the picture?", f"do you see {a}?",
        f"can you see {a}?", f"does the picture show {a}?", f"does the picture contain {a}?",
        f"is {a} in the picture?", f"is {a} there?", f"are there any {what}s?", f"{a}: yes or no?",
    )  # fmt: skip
    text = text.replace("crosss", "crosses")
    statement = f"there is {with_article(what)}" if there else f"there is no {what}"
    return Question("exists", text, yes_answer(there, statement))


def ask_where(rng: np.random.Generator, scene: Scene) -> Question | None:
    """The place of a thing."""
    if not scene.things:
        return None
    thing = scene.things[int(rng.integers(len(scene.things)))]
    near = min(abs(at - edge) for at in (thing.x, thing.y) for edge in (1 / 3, 2 / 3))
    said = name_of(rng, scene, thing)
    if said is None or near < CLEAR_PLACE:
        return None
    if len(scene.things) == 1 and rng.random() < 0.4:
        said = "the character" if thing.is_glyph else pick(rng, "the shape", "the object", "it")
    called = f"the {noun(thing)}" if thing.is_glyph or said in ("the shape", "it") else said
    called = f"the {thing.name}" if said == "the object" else called
    options = [
        f"where is {said}?", f"where is {said}?", f"where is {said} in the picture?",
        f"where's {said}?", f"where can I find {said}?", f"in which part of the picture is {said}?",
        f"what is the position of {said}?", f"on which side is {said}?", f"locate {said}.",
        f"where is {said}: left, right, top, bottom or middle?", f"where do you see {said}?",
        f"where is {said} located?", f"is {said} left, right, top, bottom or in the middle?",
    ]  # fmt: skip
    return Question("where", pick(rng, *options), place_answer(thing, called), thing)
