"""Converts images of any PIL mode to RGB. Does not import torch, for small processes."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

from model.errors import ImageError

# The transposition that makes an image upright, by EXIF orientation; 1 is upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def check_sides(size: tuple[int, int], longest_ratio: float) -> None:
    """Raise ImageError if the aspect ratio of an image exceeds ``longest_ratio``."""
    width, height = size
    ratio = max(size) / max(min(size), 1)
    if ratio > longest_ratio:
        raise ImageError(
            f"the image is {width}x{height} pixels, an aspect ratio of {ratio:.0f} to 1; the limit is "
            f"{longest_ratio:.0f} to 1: crop it or pad its short side"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame in RGB, turned upright by its EXIF orientation.

    Like in the original, transparency is dropped, not blended. 16-bit greyscale is scaled to 8 bits,
    because PIL's own conversion clips all but the darkest 0.4 % to white.
    """
    image.seek(0)
    image.load()  # first, because PIL rotates a TIFF while loading, and resets its orientation
    turn = UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    rgb = image.convert("RGB")
    rgb.info = {}  # drop the EXIF block, whose orientation no longer applies
    return rgb


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 if it is missing or unreadable.

    Not ``ImageOps.exif_transpose``, which rewrites the EXIF block and fails on other invalid tags.
    """
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a malformed EXIF block does not make the image invalid
        return 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit (``I;16*``, ``I``) or float greyscale to mode L."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    largest = values.max(initial=0.0)
    if largest > 255:
        values = values * (255 / max(largest, 65535.0))
    elif image.mode == "F" and largest <= 1:
        values = values * 255
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
