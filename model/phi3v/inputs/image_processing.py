"""Cuts an image into normalized crops (the "HD transform"), like the original processor.

The crop plan depends only on the size: the image is scaled to cover at most ``num_crops`` tiles of
336 x 336, padded with white to whole tiles, normalized, and cut. A 336 x 336 view of the whole image
(the global view) comes first.

Shape suffixes: C crops.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.errors import CheckpointError, ImageError
from model.phi3v.checkpoint import read_json
from model.phi3v.inputs.pictures import check_sides, to_rgb

TILE = 336  # side of a crop, in pixels
TOKENS_PER_SIDE = 12  # merged patches along a crop's side


@dataclass(frozen=True)
class CropPlan:
    """How an image is cut into crops.

    Attributes:
        resized: width and height in pixels of the upright image after scaling, before padding.
        grid: rows and columns of tiles.
    """

    resized: tuple[int, int]
    grid: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        """Image tokens: tiles, global view, a separator per row of patches, and one between them."""
        rows, columns = self.grid
        return (rows * columns + 1) * TOKENS_PER_SIDE**2 + 1 + (rows + 1) * TOKENS_PER_SIDE


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """An image ready for the vision tower.

    Attributes:
        pixels: ``(C, 3, 336, 336)`` float32, normalized, global view first.
        grid: rows and columns of the tiles after the global view.
        num_tokens: positions that the image takes in the prompt.
        digest: SHA-256 of the decoded pixels and all parameters of the crops; equal digests mean
            equal embeddings.
    """

    pixels: Tensor
    grid: tuple[int, int]
    num_tokens: int
    digest: bytes


class ImageProcessor:
    """Cuts images into crops, with the parameters of ``preprocessor_config.json``."""

    def __init__(
        self, num_crops: int, image_mean: tuple[float, ...], image_std: tuple[float, ...]
    ) -> None:
        self.num_crops = num_crops
        self._mean = torch.tensor(image_mean).view(3, 1, 1)
        self._std = torch.tensor(image_std).view(3, 1, 1)
        self._signature = repr((image_mean, image_std)).encode()

    @classmethod
    def from_checkpoint(cls, directory: Path) -> ImageProcessor:
        """Read ``preprocessor_config.json``; raises CheckpointError if it is missing or invalid."""
        path = directory / "preprocessor_config.json"
        config = read_json(path)
        try:
            num_crops = int(config["num_crops"])
            mean, std = (tuple(map(float, config[key])) for key in ("image_mean", "image_std"))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is invalid: {error!r}") from error
        if num_crops < 1:
            raise CheckpointError(f"{path} has num_crops = {num_crops}; it must be at least 1")
        for name, values in (("image_mean", mean), ("image_std", std)):
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise CheckpointError(f"{path} has {name} = {list(values)}; it must be 3 numbers")
        if not all(std):
            raise CheckpointError(f"{path} has image_std = {list(std)}; its values must not be 0")
        return cls(num_crops, mean, std)

    @property
    def longest_ratio(self) -> int:
        """Largest supported aspect ratio, long side to short side, in full detail."""
        return self.num_crops * TILE

    def plan(self, width: int, height: int, num_crops: int | None = None) -> CropPlan:
        """Choose the crops for an image of this size.

        Args:
            width: of the image.
            height: of the image.
            num_crops: maximum number of tiles; by default the checkpoint's, which is the most.

        Raises:
            ImageError: the image is so elongated that its short side would scale to 0 pixels.
        """
        long_side, short_side = max(width, height), min(width, height)
        ratio = long_side / short_side
        most_tiles = min(num_crops or self.num_crops, self.num_crops)
        scale = 1
        while scale * math.ceil(scale / ratio) <= most_tiles:
            scale += 1
        scale -= 1
        new_long = scale * TILE
        new_short = int(new_long / ratio)
        check_sides((width, height), new_long)  # the short side must be at least a pixel
        tiles_long, tiles_short = scale, math.ceil(new_short / TILE)
        if width < height:
            return CropPlan((new_short, new_long), (tiles_long, tiles_short))
        return CropPlan((new_long, new_short), (tiles_short, tiles_long))

    def __call__(self, image: Image.Image, num_crops: int | None = None) -> ImageInputs:
        """Cut an image of any PIL mode into normalized crops; for ``num_crops`` see ``plan``.

        Raises:
            ImageError: it is too elongated, or PIL cannot convert it.
        """
        try:
            image = to_rgb(image)
        except Exception as error:  # PIL raises many kinds on malformed files
            raise ImageError(
                f"the image cannot be converted to RGB ({error!r}); save it as a plain PNG or JPEG"
            ) from error
        plan = self.plan(*image.size, num_crops)
        padded = pad_to_tiles(resize(image, plan), plan)
        array = torch.from_numpy(np.array(padded)).permute(2, 0, 1).contiguous()
        normalised = (array.float() / 255 - self._mean) / self._std
        # Like the original: bicubic on the normalized tensor, without antialiasing.
        global_view = torch.nn.functional.interpolate(
            normalised[None], size=(TILE, TILE), mode="bicubic"
        )
        rows, columns = plan.grid
        tiles = (
            normalised.reshape(3, rows, TILE, columns, TILE)
            .permute(1, 3, 0, 2, 4)
            .reshape(-1, 3, TILE, TILE)
        )
        digest = hashlib.sha256(self._signature)
        digest.update(repr((image.size, plan)).encode())
        digest.update(image.tobytes())
        return ImageInputs(
            torch.cat([global_view, tiles]), plan.grid, plan.num_tokens, digest.digest()
        )


def resize(image: Image.Image, plan: CropPlan) -> Image.Image:
    """Scale with PIL's antialiased bilinear filter.

    Like the original, tall images are transposed first: the filter rounds to 8 bits between its two
    passes, so their order affects the last bit.
    """
    if image.width >= image.height:
        return image.resize(plan.resized, Image.Resampling.BILINEAR)
    width, height = plan.resized
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    scaled = turned.resize((height, width), Image.Resampling.BILINEAR)
    return scaled.transpose(Image.Transpose.TRANSPOSE)


def pad_to_tiles(image: Image.Image, plan: CropPlan) -> Image.Image:
    """Center the image on a white canvas of whole tiles."""
    rows, columns = plan.grid
    width, height = columns * TILE, rows * TILE
    if image.size == (width, height):
        return image
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(image, (int((width - image.width) / 2), int((height - image.height) / 2)))
    return canvas
