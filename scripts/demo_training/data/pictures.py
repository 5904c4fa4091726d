"""Draws scenes: backgrounds of any colour and texture, shapes, digits and letters in many fonts."""

from __future__ import annotations

import functools
import io
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from scripts.demo_training.data.scenes import Scene, Thing

FONT_DIRECTORIES = (Path("/usr/share/fonts"), Path(mpl.get_data_path()) / "fonts" / "ttf")
# Excluded: symbol fonts, fonts without capitals or digits, and fonts with very thin lines.
NOT_TEXT = ("LastResort", "STIXNonUni", "STIXSiz", "cmex", "cmsy", "cmmi", "FreeMonoSym")
NOT_TEXT_IN = ("Display", "Hairline", "Thin")
# Held out for evaluation, like Pillow's own font, which is available on any machine.
HELD_OUT = ("FreeSans", "Lato-", "Cantarell", "LiberationSerif", "EBGaramond", "Comfortaa")
PILLOWS_OWN = "Pillow's own"
GLYPH_SIDE = 200  # pixels of a glyph before it is scaled
LEAST_CONTRAST = 95.0  # distance in RGB between a thing and its background


@functools.cache
def fonts(held_out: bool = False) -> tuple[str, ...]:
    """Fonts on this machine: those for training, or those held out for evaluation."""
    found = sorted(
        path
        for directory in FONT_DIRECTORIES
        for pattern in ("*.ttf", "*.otf")
        for path in directory.rglob(pattern)
        if not path.name.startswith(NOT_TEXT) and not any(n in path.name for n in NOT_TEXT_IN)
    )
    chosen = [str(path) for path in found if path.name.startswith(HELD_OUT) == held_out]
    return (*chosen, PILLOWS_OWN) if held_out else tuple(chosen)


def font_of(file: str, size: int) -> ImageFont.FreeTypeFont:
    """One of ``fonts``, ``size`` pixels high."""
    if file != PILLOWS_OWN:
        return ImageFont.truetype(file, size)
    own = ImageFont.load_default(size)
    assert isinstance(own, ImageFont.FreeTypeFont)
    return own


def draw(
    rng: np.random.Generator, scene: Scene, files: tuple[str, ...] | None = None
) -> Image.Image:
    """Draw a scene in RGB, sometimes with JPEG artefacts; ``files`` overrides the fonts."""
    canvas = _background(rng, scene)
    for thing in scene.things:
        _draw_thing(rng, canvas, thing, files or fonts())
    if rng.random() < 0.12:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    if rng.random() < 0.25 and scene.width * scene.height < 300_000:
        pixels = np.asarray(canvas).astype(np.float32)
        pixels += rng.normal(0, rng.uniform(2, 14), pixels.shape).astype(np.float32)
        canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.5:
        file = io.BytesIO()
        canvas.save(file, "JPEG", quality=int(rng.integers(60, 96)))
        canvas = Image.open(file).convert("RGB")
    return canvas


# Backgrounds


def _background(rng: np.random.Generator, scene: Scene) -> Image.Image:
    """A background that contrasts with all things of the scene."""
    used = np.array([thing.rgb for thing in scene.things] or [(999, 999, 999)], dtype=np.float32)
    base = _contrasting(rng, used)
    scale = min(1.0, 320 / max(scene.width, scene.height))
    width, height = max(2, int(scene.width * scale)), max(2, int(scene.height * scale))
    pixels: np.ndarray = np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    kind = rng.choice(["plain", "gradient", "texture", "both"], p=[0.35, 0.25, 0.25, 0.15])
    if kind in ("gradient", "both"):
        other = _contrasting(rng, used, near=base)
        pixels = pixels + _ramp(rng, width, height)[..., None] * (other - base)
    if kind in ("texture", "both"):
        pixels = pixels + _texture(rng, width, height) * rng.uniform(4, 26)
    small = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return small.resize((scene.width, scene.height), Image.Resampling.BICUBIC)


def _contrasting(
    rng: np.random.Generator, used: np.ndarray, near: np.ndarray | None = None
) -> np.ndarray:
    """A random colour far from those in use, or the farthest of many if none is far enough."""
    best: np.ndarray = np.zeros(3, np.float32)
    farthest = -1.0
    for _ in range(40):
        sort = rng.random()
        if sort < 0.25:
            colour = 255 - rng.uniform(0, 45, 3)
        elif sort < 0.4:
            colour = rng.uniform(0, 60, 3)
        elif sort < 0.6:
            colour = np.full(3, rng.uniform(0, 255)) + rng.normal(0, 6, 3)
        else:
            colour = rng.uniform(0, 255, 3)
        colour = np.clip(colour, 0, 255).astype(np.float32)
        if near is not None:
            colour = near + (colour - near) * np.float32(rng.uniform(0.15, 0.7))
        distance = float(np.sqrt(((used - colour) ** 2).sum(1)).min())
        if distance > farthest:
            best, farthest = colour, distance
        if distance > LEAST_CONTRAST:
            break
    return best


def _ramp(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A linear or radial gradient from 0 to 1."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    if rng.random() < 0.3:
        ramp = np.hypot(x - rng.random(), y - rng.random())
    else:
        angle = rng.uniform(0, 2 * math.pi)
        ramp = math.cos(angle) * x + math.sin(angle) * y
    ramp = ramp - ramp.min()
    return ramp / max(float(ramp.max()), 1e-6)


def _texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A pattern of unit strength, ``(height, width, 1 or 3)``."""
    kind = rng.choice(["grain", "blobs", "stripes", "checks", "dots", "lines"])
    if kind == "grain":
        return rng.normal(0, 0.7, (height, width, int(rng.choice([1, 3]))))
    if kind == "blobs":
        cells = int(rng.integers(3, 24))
        coarse = (rng.random((cells, cells, 3)) * 255).astype(np.uint8)
        if rng.random() < 0.5:
            coarse = np.repeat(coarse[..., :1], 3, 2)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        return (np.asarray(smooth).astype(np.float32) / 127.5 - 1) * 1.2
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    period, angle = rng.uniform(5, 60), rng.uniform(0, math.pi)
    u = (math.cos(angle) * x + math.sin(angle) * y) / period
    v = (math.cos(angle) * y - math.sin(angle) * x) / period
    if kind == "stripes":
        pattern = np.sin(2 * math.pi * u) if rng.random() < 0.5 else np.sign(np.sin(math.pi * u))
    elif kind == "checks":
        pattern = ((np.floor(u) + np.floor(v)) % 2) * 2 - 1
    elif kind == "dots":
        pattern = (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < rng.uniform(0.15, 0.4)) * 2.0 - 1
    else:
        pattern = ((u % 1 < 0.1) | (v % 1 < 0.1)) * 2.0 - 1
    return 0.6 * pattern[..., None]


# Things


def _draw_thing(
    rng: np.random.Generator, canvas: Image.Image, thing: Thing, files: tuple[str, ...]
) -> None:
    side = max(4.0, thing.size * min(canvas.size))
    mask = _glyph(rng, thing.name, side, files) if thing.is_glyph else _shape(rng, thing.name, side)
    left = round(thing.x * canvas.width - mask.width / 2)
    top = round(thing.y * canvas.height - mask.height / 2)
    colour = Image.new("RGB", mask.size, thing.rgb)
    if rng.random() < 0.06:  # slightly uneven
        shade = int(rng.integers(10, 30)) * (1 if sum(thing.rgb) < 380 else -1)
        r, g, b = (max(0, min(255, c + shade)) for c in thing.rgb)
        colour = Image.blend(
            colour, Image.new("RGB", mask.size, (r, g, b)), float(rng.uniform(0.3, 1))
        )
    canvas.paste(colour, (left, top), mask)


def _shape(rng: np.random.Generator, name: str, side: float) -> Image.Image:
    """The mask of a randomly rotated shape of about ``side`` x ``side`` pixels."""
    over = 4 if side < 60 else 2
    box = int(side * 1.5) + 4
    mask = Image.new("L", (box * over, box * over))
    pen = ImageDraw.Draw(mask)
    middle, radius = box * over / 2, side * over / 2
    upright = rng.random() < 0.4
    turn = 0.0 if upright else rng.uniform(0, 2 * math.pi)

    def polygon(points: list[tuple[float, float]]) -> None:
        cos, sin = math.cos(turn), math.sin(turn)
        pen.polygon(
            [(middle + cos * x - sin * y, middle + sin * x + cos * y) for x, y in points], fill=255
        )

    def disc(r: float, fill: int) -> None:
        pen.ellipse((middle - r, middle - r, middle + r, middle + r), fill=fill)

    if name == "circle":
        disc(radius, 255)
    elif name == "ring":
        disc(radius, 255)
        disc(radius * rng.uniform(0.42, 0.8), 0)
    elif name == "square":
        a = radius * (1.0 if upright else rng.uniform(0.75, 1.0))
        polygon([(-a, -a), (a, -a), (a, a), (-a, a)])
    elif name == "triangle":
        apex = rng.uniform(-0.25, 0.25) if rng.random() < 0.3 else 0.0
        base, top, bottom = rng.uniform(0.8, 1.05), rng.uniform(0.85, 1.1), rng.uniform(0.55, 0.95)
        polygon(
            [
                (apex * radius, -top * radius),
                (base * radius, bottom * radius),
                (-base * radius, bottom * radius),
            ]
        )
    elif name == "star":
        tips = 5 if rng.random() < 0.85 else int(rng.choice([4, 6]))
        inner = rng.uniform(0.36, 0.52) if tips > 4 else rng.uniform(0.3, 0.42)
        corners = []
        for i in range(2 * tips):
            r, angle = radius * 1.08 * (1.0 if i % 2 == 0 else inner), math.pi * i / tips
            corners.append((r * math.sin(angle), -r * math.cos(angle)))
        polygon(corners)
    else:  # cross
        arm, width = radius, radius * rng.uniform(0.2, 0.42)
        polygon([(-arm, -width), (arm, -width), (arm, width), (-arm, width)])
        polygon([(-width, -arm), (width, -arm), (width, arm), (-width, arm)])
    return mask.resize((box, box), Image.Resampling.BOX)


def _glyph(rng: np.random.Generator, name: str, side: float, files: tuple[str, ...]) -> Image.Image:
    """The mask of a glyph ``side`` pixels high, in a random font, perhaps slightly rotated."""
    mask = _big_glyph(files[int(rng.integers(len(files)))], name)
    turn = rng.uniform(-15, 15) if rng.random() < 0.5 else 0.0
    scale = side / GLYPH_SIDE
    width = max(2, round(mask.width * scale * rng.uniform(0.9, 1.1)))
    mask = mask.resize((width, max(2, round(mask.height * scale))), Image.Resampling.BILINEAR)
    return mask.rotate(turn, Image.Resampling.BILINEAR, expand=True) if turn else mask


@functools.lru_cache(maxsize=4000)
def _big_glyph(file: str, name: str) -> Image.Image:
    font = font_of(file, GLYPH_SIDE)
    left, top, right, bottom = font.getbbox(name)
    mask = Image.new("L", (max(2, int(right - left) + 2), max(2, int(bottom - top) + 2)))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), name, fill=255, font=font)
    ratio = GLYPH_SIDE / max(mask.size)
    return mask.resize(
        (max(2, int(mask.width * ratio)), max(2, int(mask.height * ratio))),
        Image.Resampling.BILINEAR,
    )
