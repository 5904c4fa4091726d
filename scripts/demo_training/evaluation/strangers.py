"""Pictures and questions from another distribution than the training's.

Plain CSS colours, shapes with hard edges, positions on a grid, other backgrounds and questions. Answers
are right if they contain the expected words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from scripts.demo_training.data.pictures import font_of, fonts
from scripts.demo_training.data.scenes import DIGITS, LETTERS, SHAPES
from scripts.demo_training.evaluation.cases import Case, data_url, user

CSS = {
    "red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
    "orange": (255, 140, 0), "purple": (128, 0, 128), "black": (0, 0, 0), "white": (255, 255, 255),
}  # fmt: skip
GROUNDS = (
    (240, 248, 255), (245, 245, 220), (211, 211, 211), (112, 128, 144), (47, 79, 79), (255, 228, 225),
    (176, 224, 230), (210, 180, 140), (72, 61, 139), (188, 143, 143), (143, 188, 143), (255, 240, 200),
)  # fmt: skip
PLACES = {(0, 1): "left", (2, 1): "right", (1, 0): "top", (1, 2): "bottom", (1, 1): "middle"}


@dataclass(frozen=True)
class Item:
    """A shape in a cell of the 3 x 3 grid; ``radius`` is relative to the cell."""

    name: str
    colour: str
    cell: tuple[int, int]
    radius: float


def stranger_cases(count: int, seed: int = 77) -> Iterator[Case]:
    """Cases of every kind in turn."""
    kinds = (
        "colour",
        "shape",
        "count",
        "exists",
        "where",
        "left of",
        "larger",
        "digit",
        "letter",
        "describe",
    )
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        kind = kinds[number % len(kinds)]
        yield _glyph_case(rng, kind) if kind in ("digit", "letter") else _shape_case(rng, kind)


def _shape_case(rng: np.random.Generator, kind: str) -> Case:
    pairs = kind in ("left of", "larger")
    count = 1 if kind == "where" else int(rng.integers(2 if pairs else 1, 5))
    names = rng.choice(SHAPES, count, replace=False)
    ground = GROUNDS[int(rng.integers(len(GROUNDS)))]
    clear = [c for c, rgb in CSS.items() if math.dist(rgb, ground) > 120]
    colours = rng.choice(clear, count, replace=False)
    grid = [(x, y) for x in range(3) for y in range(3)]
    if kind == "where":
        grid = list(PLACES)
    cells = [grid[i] for i in rng.choice(len(grid), count, replace=False)]
    items = [
        Item(str(n), str(c), cell, float(rng.uniform(0.22, 0.44)))
        for n, c, cell in zip(names, colours, cells, strict=True)
    ]
    picture = _draw(rng, items, ground)
    first = items[0]
    words: tuple[str, ...]
    if kind == "colour":
        text, words = f"What color is the {first.name}?", (first.colour,)
    elif kind == "shape":
        text, words = f"What shape is the {first.colour} one?", (first.name,)
    elif kind == "count":
        text, words = "How many shapes are in the image?", (str(count),)
    elif kind == "exists":
        there = rng.random() < 0.5
        absent = [name for name in SHAPES if name not in names]
        name = first.name if there else absent[int(rng.integers(len(absent)))]
        text, words = f"Is there a {name} in the image?", ("yes" if there else "no",)
    elif kind == "where":
        text, words = f"Where is the {first.name}?", (PLACES[first.cell],)
    elif kind == "describe":
        text = "Describe the image."
        words = tuple(word for item in items for word in (item.colour, item.name))
    elif kind == "left of":
        one, other = items[0], items[1]
        if one.cell[0] == other.cell[0]:
            return _shape_case(rng, kind)
        text = f"Is the {one.name} left of the {other.name}?"
        words = ("yes" if one.cell[0] < other.cell[0] else "no",)
    else:
        one, other = items[0], items[1]
        if max(one.radius, other.radius) < 1.4 * min(one.radius, other.radius):
            return _shape_case(rng, kind)
        text = f"Which is larger, the {one.name} or the {other.name}?"
        words = ((one if one.radius > other.radius else other).name,)
    return Case(kind, [user(text, data_url(rng, picture))], "", picture, words)


def _glyph_case(rng: np.random.Generator, kind: str) -> Case:
    glyph = str(rng.choice(DIGITS if kind == "digit" else LETTERS))
    files = fonts(held_out=True)
    ground = GROUNDS[int(rng.integers(len(GROUNDS)))]
    clear = [rgb for rgb in CSS.values() if math.dist(rgb, ground) > 120]
    side = int(rng.integers(100, 800))
    picture = _ground(rng, side, side, ground)
    font = font_of(files[int(rng.integers(len(files)))], int(side * rng.uniform(0.35, 0.85)))
    pen = ImageDraw.Draw(picture)
    at = (side * rng.uniform(0.42, 0.58), side * rng.uniform(0.42, 0.58))
    pen.text(at, glyph, fill=clear[int(rng.integers(len(clear)))], font=font, anchor="mm")
    text = f"What {kind} is it?"
    return Case(kind, [user(text, data_url(rng, picture))], "", picture, (glyph.lower(),))


def _ground(
    rng: np.random.Generator, width: int, height: int, colour: tuple[int, int, int]
) -> Image.Image:
    pixels = np.ones((height, width, 3)) * colour
    kind = rng.choice(["plain", "gradient", "speckled", "bands"])
    if kind == "gradient":
        pixels *= np.linspace(1, 0.8, height)[:, None, None]
    elif kind == "speckled":
        pixels -= 25 * (rng.random((height, width, 1)) < 0.1)
    elif kind == "bands":
        pixels -= 12 * (np.arange(width) // max(6, width // 20) % 2)[None, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _draw(rng: np.random.Generator, items: list[Item], ground: tuple[int, int, int]) -> Image.Image:
    width = int(rng.integers(120, 1200))
    height = int(min(1500, max(100, width * rng.uniform(0.7, 1.4))))
    picture = _ground(rng, width, height, ground)
    pen = ImageDraw.Draw(picture)
    for item in items:
        cell_width, cell_height = width / 3, height / 3
        r = item.radius * min(cell_width, cell_height)
        x = (item.cell[0] + 0.5) * cell_width + rng.uniform(-0.06, 0.06) * cell_width
        y = (item.cell[1] + 0.5) * cell_height + rng.uniform(-0.06, 0.06) * cell_height
        fill = CSS[item.colour]
        box = (x - r, y - r, x + r, y + r)
        if item.name == "circle":
            pen.ellipse(box, fill=fill)
        elif item.name == "square":
            pen.rectangle(box, fill=fill)
        elif item.name == "ring":
            pen.ellipse(box, outline=fill, width=max(2, int(r * rng.uniform(0.25, 0.5))))
        elif item.name == "triangle":
            pen.regular_polygon((x, y, r), 3, rotation=int(rng.choice([0, 90, 180])), fill=fill)
        elif item.name == "cross":
            w = r * 0.3
            pen.rectangle((x - r, y - w, x + r, y + w), fill=fill)
            pen.rectangle((x - w, y - r, x + w, y + r), fill=fill)
        else:
            turn = rng.uniform(0, 0.6)
            points = [
                (
                    x + (r if i % 2 == 0 else 0.42 * r) * math.sin(math.pi * i / 5 + turn),
                    y - (r if i % 2 == 0 else 0.42 * r) * math.cos(math.pi * i / 5 + turn),
                )
                for i in range(10)
            ]
            pen.polygon(points, fill=fill)
    return picture
