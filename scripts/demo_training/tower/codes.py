"""The codes between vision tower and decoder: what a picture token encodes about its cell.

The tower learns to produce them and the decoder to read them, independently of each other. A thing is
encoded by the cells around its centre, with shares that add up to one and change smoothly with its
position; all other cells encode nothing. So the target is unambiguous between neighbouring cells, and
the sum of the shares counts things.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model.phi3v.inputs.image_processing import TILE
from scripts.demo_training.data.scenes import COLOURS, MOST_THINGS, THINGS, Scene, Thing
from scripts.demo_training.network import SIZES
from scripts.demo_training.tower.cells import CELL, placed

SPREAD = 0.4  # in cells: this close to a border, both cells encode a thing
PLACE_MARKS = torch.arange(0, 1.01, 0.2)  # along each side of a picture
SIZE_MARKS = torch.linspace(-0.2, 2.4, 6)  # logarithms of a thing's size in cells
# The parts of a code, with their widths and scales.
PARTS = {
    "share": (1, 3.0),
    "thing": (len(THINGS), 4.5),
    "colour": (len(COLOURS), 4.0),
    "size": (1 + len(SIZE_MARKS), 2.5),
    "x": (1 + len(PLACE_MARKS), 2.5),
    "y": (1 + len(PLACE_MARKS), 2.5),
}
CODE = sum(width for width, _ in PARTS.values())
PLACES_FROM = CODE - 2 * (1 + len(PLACE_MARKS))  # index of the first position value
MEASURES_FROM = PLACES_FROM - PARTS["size"][0]  # index of the first size value
SILENCE = 5.0  # a constant in every picture token; keeps the decoder's norms from amplifying noise


def codes(scene: Scene, side: int = TILE) -> Tensor:
    """The codes of a scene's view, ``(cells, CODE)``."""
    count = round(side / CELL)
    out = torch.zeros(count, count, CODE)
    for thing, x, y, size in placed(scene, side):
        shares = np.outer(_shares(y, count), _shares(x, count))
        out += torch.from_numpy(shares).float()[..., None] * _code(thing, size)
    return out.flatten(0, 1)


def thing_codes(scene: Scene) -> Tensor:
    """The full code of each thing, ``(MOST_THINGS, CODE)``."""
    out = torch.zeros(MOST_THINGS, CODE)
    for number, (thing, _, _, size) in enumerate(placed(scene)):
        out[number] = _code(thing, size)
    return out


def _shares(place: float, count: int) -> np.ndarray:
    """The shares of a row's cells for a thing at ``place``, in cells."""
    first = math.floor(place - 0.5)
    second = min(max((place - 1 - first) / SPREAD + 0.5, 0.0), 1.0)
    shares = np.zeros(count)
    shares[min(max(first, 0), count - 1)] += 1 - second
    shares[min(max(first + 1, 0), count - 1)] += second
    return shares


def _code(thing: Thing, size: float) -> Tensor:
    told = {
        "share": torch.ones(1),
        "thing": functional.one_hot(torch.tensor(THINGS.index(thing.name)), len(THINGS)),
        "colour": functional.one_hot(torch.tensor(COLOURS.index(thing.colour)), len(COLOURS)),
        "size": _marked(math.log(size) - 1, SIZE_MARKS - 1, 0.5),
        "x": _marked(2 * thing.x - 1, 2 * PLACE_MARKS - 1, 0.35),
        "y": _marked(2 * thing.y - 1, 2 * PLACE_MARKS - 1, 0.35),
    }
    return torch.cat([told[name] * loudness for name, (_, loudness) in PARTS.items()])


def _marked(value: float, marks: Tensor, width: float) -> Tensor:
    """A value, and its proximity to each mark."""
    return torch.cat([torch.tensor([value]), (-((value - marks) / width).square()).exp()])


def spoken(told: Tensor) -> Tensor:
    """Convert codes ``(..., CODE)`` to picture tokens ``(..., hidden size)``."""
    return told @ _VOICE[1:] + SILENCE * _VOICE[0]


def heard(tokens: Tensor) -> Tensor:
    """Convert picture tokens to codes."""
    return tokens @ _VOICE[1:].T


def by_part(told: Tensor) -> dict[str, Tensor]:
    """Split codes by the names of ``PARTS``."""
    widths = [width for width, _ in PARTS.values()]
    return dict(zip(PARTS, told.split(widths, -1), strict=True))


def _orthonormal(rows: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(width, rows, generator=generator))[0].T.contiguous()


_VOICE = _orthonormal(1 + CODE, SIZES.hidden_size)


def misheard(rng: np.random.Generator, told: Tensor) -> Tensor:
    """Add noise to codes, like a tower's errors; more where there is a thing."""
    noise = torch.from_numpy(rng.normal(0, 1, told.shape)).float()
    share = told[:, :1] / PARTS["share"][1]
    louder = torch.from_numpy(rng.normal(1, 0.06, (len(told), 1))).float()
    return told * louder + noise * (0.05 + 0.3 * share)
