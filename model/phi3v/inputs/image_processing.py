"""Cuts an image into normalized crops (the "HD transform"), like the original processor.

The crop plan depends only on the size: the image is scaled to cover at most ``num_crops`` tiles of
336 x 336, padded with white to whole tiles, normalized, and cut. A 336 x 336 view of the whole image
(the global view) comes first.

A waiting image is held as 8-bit pixels, a quarter of its crops' size. They are normalized and cut on the
tower's device when it needs them.

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
from torch.nn.functional import interpolate

from model.errors import CheckpointError, ImageError
from model.phi3v.checkpoint import read_json
from model.phi3v.inputs.pictures import check_sides, to_rgb
from model.phi3v.transfer import to_device

CPU = torch.device("cpu")
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


SMALLEST_IMAGE = CropPlan((TILE, TILE), (1, 1)).num_tokens  # tokens


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """An image ready for the vision tower.

    Attributes:
        pixels: ``(height, width, 3)`` uint8, whole tiles.
        levels: ``(3, 256)`` float32, the normalized value of each 8-bit value, by channel.
        num_pixels: of the image before scaling.
        num_tokens: positions that the image takes in the prompt.
        digest: SHA-256 of the decoded pixels or the file, and of all parameters of the crops; equal
            digests mean equal embeddings.
    """

    pixels: Tensor
    levels: Tensor
    num_pixels: int
    num_tokens: int
    digest: bytes

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes while it waits."""
        return self.pixels.nbytes

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tiles."""
        height, width, _ = self.pixels.shape
        return height // TILE, width // TILE

    @property
    def num_crops(self) -> int:
        """Number of tiles, and one for the global view."""
        rows, columns = self.grid
        return rows * columns + 1

    def crops(self, device: torch.device = CPU) -> Tensor:
        """The normalized crops on a device, ``(C, 3, 336, 336)`` float32, global view first."""
        pixels, levels = to_device(self.pixels, device), to_device(self.levels, device)
        image = torch.empty(3, *pixels.shape[:2], device=device)
        # A table is exact on every device; on a GPU, torch multiplies by the reciprocal of 255.
        for channel in range(3):
            values = pixels[..., channel].int().flatten()
            torch.index_select(levels[channel], 0, values, out=image[channel].view(-1))
        rows, columns = self.grid
        crops = torch.empty(self.num_crops, 3, TILE, TILE, device=device)
        # Like the original: bicubic on the normalized tensor, without antialiasing.
        crops[:1] = interpolate(image[None], size=(TILE, TILE), mode="bicubic")
        tiles = image.view(3, rows, TILE, columns, TILE).permute(1, 3, 0, 2, 4)
        crops[1:].view(rows, columns, 3, TILE, TILE).copy_(tiles)
        return crops


@dataclass(frozen=True, eq=False)
class EmbeddedImage:
    """An image whose embedding is cached. The cache keeps the embedding as long as this object lives.

    Attributes:
        embedding: ``(image tokens, hidden)``.
        num_pixels, digest: see ``ImageInputs``.
    """

    embedding: Tensor
    num_pixels: int
    digest: bytes
    num_bytes = 0  # the cache's own

    @property
    def num_tokens(self) -> int:
        """Positions that the image takes in the prompt."""
        return len(self.embedding)


class ImageProcessor:
    """Scales images to whole tiles, with the parameters of ``preprocessor_config.json``."""

    def __init__(
        self, num_crops: int, image_mean: tuple[float, ...], image_std: tuple[float, ...]
    ) -> None:
        self.num_crops = num_crops
        mean, std = torch.tensor(image_mean), torch.tensor(image_std)
        self._levels = (torch.arange(256) / 255 - mean[:, None]) / std[:, None]
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
        most_tiles = self._most_tiles(num_crops)
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

    def file_digest(self, file: bytes, num_crops: int | None = None) -> bytes:
        """The digest that stands for an image file; for ``num_crops`` see ``plan``."""
        digest = hashlib.sha256(self._signature)
        digest.update(repr(("file", self._most_tiles(num_crops))).encode())
        digest.update(file)
        return digest.digest()

    def __call__(
        self, image: Image.Image, num_crops: int | None = None, digest: bytes | None = None
    ) -> ImageInputs:
        """Scale and pad an image of any PIL mode.

        Args:
            image: the image.
            num_crops: see ``plan``.
            digest: of its file; by default the pixels' digest.

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
        pixels = torch.from_numpy(np.array(padded))
        digest = digest or self._pixel_digest(image, plan)
        num_pixels = image.width * image.height
        return ImageInputs(pixels, self._levels, num_pixels, plan.num_tokens, digest)

    def _pixel_digest(self, image: Image.Image, plan: CropPlan) -> bytes:
        digest = hashlib.sha256(self._signature)
        digest.update(repr((image.size, plan)).encode())
        digest.update(image.tobytes())
        return digest.digest()

    def _most_tiles(self, num_crops: int | None) -> int:
        return min(num_crops or self.num_crops, self.num_crops)


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
