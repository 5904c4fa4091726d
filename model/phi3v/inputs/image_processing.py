"""From a picture to normalised crops (the "HD transform"), as the original processor computes them.

A crop plan is chosen from the size alone: the picture is scaled so that it covers at most
``num_crops`` tiles of 336 x 336, padded with white to whole tiles, normalised, and cut; a
336 x 336 view of the whole ("global view") comes first. Knows nothing of tokens' text.

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
    """How one picture becomes crops.

    Attributes:
        resized: width and height, in pixels, after scaling (before padding), upright.
        grid: rows and columns of tiles.
    """

    resized: tuple[int, int]
    grid: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        """Image tokens: tiles and global view, a separator per row of patches, one between."""
        rows, columns = self.grid
        return (rows * columns + 1) * TOKENS_PER_SIDE**2 + 1 + (rows + 1) * TOKENS_PER_SIDE


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """One picture, ready for the vision tower.

    Attributes:
        pixels: ``(C, 3, 336, 336)`` float32, normalised, global view first.
        grid: rows and columns of the tiles after the global view.
        num_tokens: positions the picture takes in the prompt.
        digest: sha256 of the decoded pixels and of everything that shapes the crops; pictures with
            equal digests have equal embeddings.
    """

    pixels: Tensor
    grid: tuple[int, int]
    num_tokens: int
    digest: bytes


class ImageProcessor:
    """Turns pictures into crops, with the parameters of ``preprocessor_config.json``."""

    def __init__(
        self, num_crops: int, image_mean: tuple[float, ...], image_std: tuple[float, ...]
    ) -> None:
        self.num_crops = num_crops
        self._mean = torch.tensor(image_mean).view(3, 1, 1)
        self._std = torch.tensor(image_std).view(3, 1, 1)
        self._signature = repr((image_mean, image_std)).encode()

    @classmethod
    def from_checkpoint(cls, directory: Path) -> ImageProcessor:
        """Read ``preprocessor_config.json``; raises CheckpointError when it is missing or odd."""
        path = directory / "preprocessor_config.json"
        config = read_json(path)
        try:
            num_crops = int(config["num_crops"])
            mean, std = (tuple(map(float, config[key])) for key in ("image_mean", "image_std"))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be used: {error!r}") from error
        if num_crops < 1:
            raise CheckpointError(f"{path} has num_crops = {num_crops}; it must be at least 1")
        for name, values in (("image_mean", mean), ("image_std", std)):
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise CheckpointError(f"{path} has {name} = {list(values)}; it must be 3 numbers")
        if not all(std):
            raise CheckpointError(f"{path} has image_std = {list(std)}; pixels are divided by it")
        return cls(num_crops, mean, std)

    @property
    def longest_ratio(self) -> int:
        """Of a picture's long side to its short one, in full detail."""
        return self.num_crops * TILE

    def plan(self, width: int, height: int, low_detail: bool = False) -> CropPlan:
        """Choose the crops for a picture of this size; with low detail, one tile.

        Raises:
            ImageError: the picture is so elongated that its short side would scale to nothing.
        """
        long_side, short_side = max(width, height), min(width, height)
        ratio = long_side / short_side
        most_tiles = 1 if low_detail else self.num_crops
        scale = 1
        while scale * math.ceil(scale / ratio) <= most_tiles:
            scale += 1
        scale -= 1
        new_long = scale * TILE
        new_short = int(new_long / ratio)
        check_sides((width, height), new_long)  # so that the short side is a pixel at least
        tiles_long, tiles_short = scale, math.ceil(new_short / TILE)
        if width < height:
            return CropPlan((new_short, new_long), (tiles_long, tiles_short))
        return CropPlan((new_long, new_short), (tiles_short, tiles_long))

    def __call__(self, image: Image.Image, low_detail: bool = False) -> ImageInputs:
        """Cut a picture of any PIL mode into normalised crops.

        Raises:
            ImageError: no crop plan for its size, or PIL fails at it.
        """
        try:
            image = to_rgb(image)
        except Exception as error:  # PIL raises anything on files it did not expect
            raise ImageError(
                f"the image cannot be converted to RGB ({error!r}); save it as a plain PNG or JPEG"
            ) from error
        plan = self.plan(*image.size, low_detail)
        padded = pad_to_tiles(resize(image, plan), plan)
        array = torch.from_numpy(np.array(padded)).permute(2, 0, 1).contiguous()
        normalised = (array.float() / 255 - self._mean) / self._std
        # Bicubic on the normalised tensor, without antialiasing: what the original does.
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

    Tall pictures are transposed around it, as in the original: the two passes of the filter round
    to 8 bits in between, so their order shows in the last bit.
    """
    if image.width >= image.height:
        return image.resize(plan.resized, Image.Resampling.BILINEAR)
    width, height = plan.resized
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    scaled = turned.resize((height, width), Image.Resampling.BILINEAR)
    return scaled.transpose(Image.Transpose.TRANSPOSE)


def pad_to_tiles(image: Image.Image, plan: CropPlan) -> Image.Image:
    """Centre the picture on a white canvas of whole tiles."""
    rows, columns = plan.grid
    width, height = columns * TILE, rows * TILE
    if image.size == (width, height):
        return image
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(image, (int((width - image.width) / 2), int((height - image.height) / 2)))
    return canvas
