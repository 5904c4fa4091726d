"""An endless dataset of labelled views for the vision tower."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.phi3v.inputs.image_processing import TILE, pad_to_tiles, resize
from scripts.demo_training.data.pictures import draw
from scripts.demo_training.data.scenes import Scene, random_scene
from scripts.demo_training.tower.cells import PLANS, CellLabels, extent, labels
from scripts.demo_training.tower.codes import codes

BLOCK = 512


def view(rng: np.random.Generator, scene: Scene, side: int = TILE) -> Tensor:
    """A drawing of the scene after the server's scaling and padding, ``(side, side, 3)`` uint8."""
    picture = draw(rng, scene)
    if side == TILE:
        plan = PLANS.plan(*picture.size)
        return torch.from_numpy(np.array(pad_to_tiles(resize(picture, plan), plan)))
    left, top, width, height = (round(part) for part in extent(*picture.size, side))
    padded = Image.new("RGB", (side, side), (255, 255, 255))
    small = picture.resize((max(1, width), max(1, height)), Image.Resampling.BILINEAR)
    padded.paste(small, (left, top))
    return torch.from_numpy(np.array(padded))


@dataclass(frozen=True)
class Sample:
    """A view with labels, or a batch of them.

    Attributes:
        pixels: ``(side, side, 3)`` uint8.
        labels: of its cells.
        codes: targets of its picture tokens.
    """

    pixels: Tensor
    labels: CellLabels
    codes: Tensor


class LabelledViews(torch.utils.data.Dataset[Sample]):
    """An endless dataset of labelled views; an index always gives the same picture.

    Each picture is used ``repeats`` times, ``BLOCK`` views apart, because drawing is slow.
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
        self._drawn: dict[int, Sample] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        block, place = divmod(index + self._first, BLOCK)
        block, repeat = divmod(block, self._repeats)
        number = block * BLOCK + place
        sample = self._drawn.pop(number, None) or self._draw(number)
        if repeat + 1 < self._repeats:
            self._drawn[number] = sample
        return sample

    def _draw(self, number: int) -> Sample:
        rng = np.random.default_rng((self._seed, number))
        scene = random_scene(rng, "mosaic" if rng.random() < self._mosaics else None, self._side)
        pixels = view(rng, scene, self._side)
        return Sample(pixels, labels(scene, self._side), codes(scene, self._side))


def collate(samples: list[Sample]) -> Sample:
    """Stack samples into a batch."""
    stacked = [
        torch.stack([getattr(sample.labels, field.name) for sample in samples])
        for field in fields(CellLabels)
    ]
    return Sample(
        torch.stack([sample.pixels for sample in samples]),
        CellLabels(*stacked),
        torch.stack([sample.codes for sample in samples]),
    )
