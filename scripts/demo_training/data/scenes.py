"""Scenes to draw: things with colours, positions and sizes."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "white")
DIGITS = tuple(string.digits)
LETTERS = tuple(string.ascii_uppercase)
GLYPHS = DIGITS + LETTERS
THINGS = SHAPES + GLYPHS

MOST_THINGS = 4  # in a picture with questions

# Several common shades of each colour; small random offsets are added to each channel.
ANCHORS = {
    "red": [(255, 0, 0), (220, 20, 60), (214, 39, 40), (229, 57, 53), (200, 30, 30), (178, 20, 20)],
    "green": [
        (0, 128, 0), (0, 255, 0), (44, 160, 44), (67, 160, 71), (34, 139, 34), (0, 200, 80),
        (46, 204, 113), (0, 160, 60), (30, 180, 30),
    ],
    "blue": [
        (0, 0, 255), (31, 119, 180), (30, 136, 229), (0, 0, 170), (65, 105, 225), (52, 152, 219),
        (20, 60, 200), (40, 90, 220),
    ],
    "yellow": [
        (255, 255, 0), (253, 216, 53), (241, 204, 15), (255, 221, 0), (240, 230, 40), (255, 215, 0),
        (250, 220, 30),
    ],
    "orange": [
        (255, 165, 0), (255, 127, 14), (251, 140, 0), (255, 140, 0), (230, 126, 34), (243, 120, 20),
    ],
    "purple": [
        (128, 0, 128), (148, 103, 189), (142, 36, 170), (155, 89, 182), (138, 43, 226),
        (102, 51, 153), (160, 32, 240), (150, 40, 180),
    ],
    "black": [(0, 0, 0), (20, 20, 20), (34, 34, 34), (10, 10, 15)],
    "white": [(255, 255, 255), (245, 245, 245), (250, 250, 250), (240, 240, 240)],
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """A shape, or a digit or letter.

    Attributes:
        name: one of ``THINGS``.
        colour: one of ``COLOURS``.
        rgb: the exact colour.
        x, y: centre, relative to the picture's width and height.
        size: height and width, relative to the picture's shorter side.
    """

    name: str
    colour: str
    rgb: tuple[int, int, int]
    x: float
    y: float
    size: float

    @property
    def is_glyph(self) -> bool:
        """Whether it is a digit or a letter."""
        return self.name in GLYPHS

    def area(self) -> tuple[str, str]:
        """Row (top, middle, bottom) and column (left, middle, right) of the picture."""
        row = "top" if self.y < 1 / 3 else "bottom" if self.y > 2 / 3 else "middle"
        column = "left" if self.x < 1 / 3 else "right" if self.x > 2 / 3 else "middle"
        return row, column


@dataclass(frozen=True)
class Scene:
    """A picture to draw: its size in pixels and its things, in reading order."""

    width: int
    height: int
    things: tuple[Thing, ...]

    @property
    def shapes(self) -> list[Thing]:
        """The shapes in it."""
        return [thing for thing in self.things if not thing.is_glyph]

    @property
    def glyph(self) -> Thing | None:
        """Its digit or letter, if that is its only thing."""
        return self.things[0] if len(self.things) == 1 and self.things[0].is_glyph else None


def random_scene(rng: np.random.Generator, kind: str | None = None, side: int = 336) -> Scene:
    """One to four shapes, one glyph, nothing, or (``mosaic``) many shapes and glyphs.

    Args:
        rng: random generator.
        kind: ``shapes``, ``glyph``, ``empty`` or ``mosaic``; None chooses at random.
        side: longer side of the view; things stay large enough to be visible in it.
    """
    if kind is None:
        kind = rng.choice(["shapes", "glyph", "empty"], p=[0.68, 0.31, 0.01])
    width, height = _picture_size(rng, side)
    if kind == "empty":
        return Scene(width, height, ())
    if kind == "glyph":
        names = [rng.choice(GLYPHS)]
    elif kind == "mosaic":
        least, most = (1, 4) if side < 336 else (3, 7)
        names = list(rng.choice(THINGS, int(rng.integers(least, most + 1)), p=_MOSAIC))
    else:
        names = list(rng.choice(SHAPES, int(rng.choice([1, 2, 3, 4], p=[0.22, 0.26, 0.26, 0.26]))))
    colours = rng.choice(COLOURS, len(names))
    if len(names) > 1 and rng.random() < 0.15:  # several of one shape, for counting
        names[1:] = [names[0]] * (len(names) - 1)
    if len(names) > 1 and rng.random() < 0.15:
        colours[1:] = colours[0]
    places = _places(rng, [str(name) for name in names], width, height, side)
    things = [
        Thing(str(name), str(colour), _jitter(rng, str(colour)), *place)
        for name, colour, place in zip(names, colours, places, strict=False)
    ]
    return Scene(
        width, height, tuple(sorted(things, key=lambda thing: _reading(thing, width, height)))
    )


def _reading(thing: Thing, width: int, height: int) -> tuple[int, float]:
    """Sort key for reading order: one of twelve lines of the square view, then the column."""
    return int(12 * ((thing.y - 0.5) * height / max(width, height) + 0.5)), thing.x


_MOSAIC = [0.55 / len(SHAPES)] * len(SHAPES) + [0.45 / len(GLYPHS)] * len(GLYPHS)
# Sizes of things after scaling the picture.
LEAST_PIXELS = 24
LEAST_GLYPH_PIXELS = 52


def _picture_size(rng: np.random.Generator, side: int) -> tuple[int, int]:
    long = int(math.exp(rng.uniform(math.log(80), math.log(700))))
    if rng.random() < 0.05:
        long = int(rng.integers(700, 1500))
    if side < 336:  # as sharp as in a whole view, and faster to draw
        long = max(64, long // 2)
    ratio = 1.0 if rng.random() < 0.35 else math.exp(abs(rng.normal(0, 0.45)))
    short = max(64, int(long / min(ratio, 3.5)))
    long = max(long, short)
    return (long, short) if rng.random() < 0.6 else (short, long)


def _places(
    rng: np.random.Generator, names: list[str], width: int, height: int, side: int
) -> list[tuple[float, float, float]]:
    """Positions (x, y, size) of circles that do not touch; fewer than ``count`` if space runs out."""
    short, long = min(width, height), max(width, height)
    count = len(names)
    places: list[tuple[float, float, float]] = []
    for _ in range(12):
        places = []
        shrink = rng.uniform(0.4, 1) if rng.random() < 0.25 else 1.0
        for name in names:
            glyph = name in GLYPHS
            pixels = LEAST_GLYPH_PIXELS if glyph else LEAST_PIXELS
            least = max(0.08, pixels * long / (side * short))
            most = 0.9 if glyph and count == 1 else 0.62 / max(1, count - 1) ** 0.35
            most = max(least * 1.2, most * shrink)
            for _ in range(25):
                size = math.exp(rng.uniform(math.log(least), math.log(most)))
                if count == 1 and rng.random() < 0.5:
                    size = rng.uniform(least, most)
                half = min(size * 0.52 * short, short / 2 - 1)
                centred = count == 1 and rng.random() < 0.25
                x = width / 2 if centred else rng.uniform(half, width - half)
                y = height / 2 if centred else rng.uniform(half, height - half)
                if all(
                    math.hypot(x - a * width, y - b * height) > (size + other) * short * 0.55
                    for a, b, other in places
                ):
                    places.append((x / width, y / height, size))
                    break
        if len(places) == count:
            break
    return places


def _jitter(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    anchors = ANCHORS[colour]
    base = np.array(anchors[int(rng.integers(len(anchors)))])
    r, g, b = np.clip(base + rng.integers(-9, 10, 3), 0, 255)
    return int(r), int(g), int(b)
