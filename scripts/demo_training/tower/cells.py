"""Labels of the cells of a view.

The server's image processing scales and pads a picture to a view of 336 x 336. A cell is a merged
patch of 28 x 28 pixels, one picture token; a view has 12 x 12 cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.demo.random_checkpoint import CLIP_MEAN, CLIP_STD
from model.phi3v.inputs.image_processing import TILE, ImageProcessor
from scripts.demo_training.data.scenes import COLOURS, THINGS, Scene, Thing
from scripts.demo_training.network import SIZES

CELLS = 12
CELL = TILE / CELLS
PLANS = ImageProcessor(SIZES.num_crops, tuple(CLIP_MEAN), tuple(CLIP_STD))


def extent(width: int, height: int, side: int = TILE) -> tuple[float, float, float, float]:
    """Left, top, width and height of a picture in its view, in pixels."""
    across, down = (part * side / TILE for part in PLANS.plan(width, height).resized)
    return (side - across) / 2, (side - down) / 2, across, down


def placed(scene: Scene, side: int = TILE) -> Iterator[tuple[Thing, float, float, float]]:
    """The things of a scene with column and row of their centre and their size, in cells."""
    left, top, width, height = (part / CELL for part in extent(scene.width, scene.height, side))
    for thing in scene.things:
        size = thing.size * min(width, height)
        yield thing, left + thing.x * width, top + thing.y * height, size


@dataclass(frozen=True)
class CellLabels:
    """Labels per cell, ``(cells,)``; colour and box are undefined in empty cells.

    Attributes:
        thing: 0, or 1 + index of the thing that covers the cell.
        colour: index of its colour.
        box: offset of its centre from the cell's, in cells, and log of its size; ``(cells, 3)``.
        centre: whether the thing's centre is in this cell.
    """

    thing: Tensor
    colour: Tensor
    box: Tensor
    centre: Tensor


def labels(scene: Scene, side: int = TILE) -> CellLabels:
    """The labels of a scene's view."""
    count = round(side / CELL)
    cells = (count, count)
    thing, colour = np.zeros(cells, np.int64), np.zeros(cells, np.int64)
    centre, box = np.zeros(cells, bool), np.zeros((*cells, 3), np.float32)
    row, column = np.mgrid[0:count, 0:count] + 0.5
    for item, x, y, size in placed(scene, side):
        inside = np.maximum(abs(row - y), abs(column - x)) < 0.45 * size
        at = min(int(y), count - 1), min(int(x), count - 1)
        inside[at] = True
        thing[inside] = 1 + THINGS.index(item.name)
        colour[inside] = COLOURS.index(item.colour)
        offsets = [x - column, y - row, np.full(cells, math.log(size))]
        box[inside] = np.stack(offsets, -1)[inside]
        centre[at] = True
    return CellLabels(
        torch.from_numpy(thing).flatten(),
        torch.from_numpy(colour).flatten(),
        torch.from_numpy(box).flatten(0, 1),
        torch.from_numpy(centre).flatten(),
    )
