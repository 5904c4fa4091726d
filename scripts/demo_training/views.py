"""Pictures as the vision tower sees them, and what each of its cells should know.

The server's own image processing scales and pads the drawn picture to 336 x 336, so training sees
what serving sees. A cell is a merged patch: 28 x 28 pixels, 12 x 12 of them in the view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from model.demo.random_checkpoint import CLIP_MEAN, CLIP_STD
from model.phi3v.image_processing import TILE, ImageProcessor, _pad_to_tiles, _resize
from scripts.demo_training.pictures import draw
from scripts.demo_training.scenes import COLOURS, THINGS, Scene, random_scene

CELLS = 12
CELL = TILE / CELLS
MOST_THINGS = 7
NUM_CROPS = 1
BLOCK = 512
_PLANS = ImageProcessor(NUM_CROPS, tuple(CLIP_MEAN), tuple(CLIP_STD))


@dataclass(frozen=True)
class CellLabels:
    """Per cell of a view, ``(144,)``; nothing is said of colour and place where there is nothing.

    Attributes:
        thing: 0, or 1 + index of the thing that covers the cell.
        colour: index of its colour.
        box: offset of its centre from the cell's, in cells, and log of its size; ``(144, 3)``.
        centre: whether the thing's centre is in this cell.
        rank: how many things are further left than this one.
        count: how many things the picture has.
    """

    thing: Tensor
    colour: Tensor
    box: Tensor
    centre: Tensor
    rank: Tensor
    count: Tensor


def view(rng: np.random.Generator, scene: Scene, side: int = TILE) -> Tensor:
    """A drawing of the scene after the server's scaling and padding, ``(side, side, 3)`` uint8."""
    picture = draw(rng, scene)
    plan = _PLANS.plan(*picture.size)
    if side == TILE:
        padded = _pad_to_tiles(_resize(picture, plan), plan)
    else:
        size = [max(1, part * side // TILE) for part in plan.resized]
        small = picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        padded = Image.new("RGB", (side, side), (255, 255, 255))
        padded.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return torch.from_numpy(np.array(padded))


def labels(scene: Scene, side: int = TILE) -> CellLabels:
    """What the cells of the scene's view should know."""
    count = side * CELLS // TILE
    cells = (count, count)
    thing, colour, rank = (np.zeros(cells, np.int64) for _ in range(3))
    centre, box = np.zeros(cells, np.float32), np.zeros((*cells, 3), np.float32)
    width, height = (part * side / TILE for part in _PLANS.plan(scene.width, scene.height).resized)
    left, top = (side - width) / 2, (side - height) / 2
    row, column = np.mgrid[0:count, 0:count] + 0.5
    for index, item in enumerate(scene.things):
        x, y = (left + item.x * width) / CELL, (top + item.y * height) / CELL
        size = item.size * min(width, height) / CELL
        inside = np.maximum(abs(row - y), abs(column - x)) < 0.45 * size
        at = min(int(y), count - 1), min(int(x), count - 1)
        inside[at] = True
        thing[inside] = 1 + THINGS.index(item.name)
        colour[inside] = COLOURS.index(item.colour)
        rank[inside] = index
        offsets = [x - column, y - row, np.full(cells, math.log(size))]
        box[inside] = np.stack(offsets, -1)[inside]
        centre[at] = 1
    return CellLabels(
        torch.from_numpy(thing).flatten(),
        torch.from_numpy(colour).flatten(),
        torch.from_numpy(box).flatten(0, 1),
        torch.from_numpy(centre).flatten(),
        torch.from_numpy(rank).flatten(),
        torch.full((count * count,), len(scene.things)),
    )


PLACES = torch.arange(0, 1.01, 0.2)  # along each side of a picture
KNOWN = 1 + len(THINGS) + len(COLOURS) + 3 + 1 + 2 * MOST_THINGS + 1 + 2 * (1 + len(PLACES))


def known_cells(rng: np.random.Generator, scene: Scene, noise: float = 0.15) -> Tensor:
    """The labels of a scene's cells as one vector each, ``(144, KNOWN)``, blurred by noise.

    What a perfect tower would tell the decoder, which can learn to speak of it before there is one.
    """
    marks = labels(scene)
    covered = (marks.thing > 0).float()[:, None]
    missed = torch.from_numpy(rng.random((len(covered), 1)) < noise) & (marks.centre[:, None] == 0)
    covered = torch.where(missed, 0.0, covered)
    parts = [
        functional.one_hot(marks.thing * (covered[:, 0] > 0), 1 + len(THINGS)).float(),
        functional.one_hot(marks.colour, len(COLOURS)) * covered,
        marks.box * covered * torch.tensor([0.4, 0.4, 0.7]),
        marks.centre[:, None] * 1.5,
        functional.one_hot(marks.rank, MOST_THINGS) * covered,
        functional.one_hot(marks.count, MOST_THINGS + 1) * covered * 0.7,
    ]
    for along in ("x", "y"):  # of the picture, which need not fill the view
        at = torch.tensor([getattr(thing, along) for thing in scene.things] or [0.0])
        place = at[marks.rank][:, None]
        near = (-((place - PLACES) / 0.15).square()).exp()
        parts += [(2 * place - 1) * covered, near * covered]
    known = torch.cat(parts, 1)
    return known + torch.from_numpy(rng.normal(0, 1, known.shape) * noise).float()


def normalise(views: Tensor) -> Tensor:
    """What the tower takes, from ``(B, 336, 336, 3)`` uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (views.permute(0, 3, 1, 2) / 255 - mean) / std


class LabelledViews(torch.utils.data.Dataset[tuple[Tensor, CellLabels]]):
    """Endlessly many labelled views; the same index is always the same picture.

    Each picture comes ``repeats`` times, some ``BLOCK`` views apart, because drawing is dear.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        first: int = 0,
        mosaics: float = 0.5,
        side: int = TILE,
        repeats: int = 1,
    ) -> None:
        self._seed, self._count, self._first = seed, count, first
        self._mosaics, self._side, self._repeats = mosaics, side, repeats
        self._drawn: dict[int, tuple[Tensor, CellLabels]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, CellLabels]:
        index += self._first
        block, place = divmod(index, BLOCK)
        block, repeat = divmod(block, self._repeats)
        number = block * BLOCK + place
        sample = self._drawn.pop(number, None) or self._draw(number)
        if repeat + 1 < self._repeats:
            self._drawn[number] = sample
        return sample

    def _draw(self, number: int) -> tuple[Tensor, CellLabels]:
        rng = np.random.default_rng((self._seed, number))
        scene = random_scene(rng, "mosaic" if rng.random() < self._mosaics else None, self._side)
        return view(rng, scene, self._side), labels(scene, self._side)


def collate(samples: list[tuple[Tensor, CellLabels]]) -> tuple[Tensor, CellLabels]:
    """Stack samples to a batch."""
    views, marks = zip(*samples, strict=True)
    names = CellLabels.__dataclass_fields__
    stacked = (torch.stack([getattr(mark, name) for mark in marks]) for name in names)
    return torch.stack(views), CellLabels(*stacked)
