"""From a picture of any PIL mode to plain RGB. Imports no torch, so that small processes can do it."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image

from model.errors import ImageError

# What turns a picture upright, by its EXIF orientation; 1 is upright.
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
    """Raise ImageError when one side of a picture is more than so many times the other."""
    width, height = size
    ratio = max(size) / max(min(size), 1)
    if ratio > longest_ratio:
        raise ImageError(
            f"the image is {width}x{height} pixels, an aspect ratio of {ratio:.0f} to 1; the limit is "
            f"{longest_ratio:.0f} to 1: crop it or pad its short side"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame, turned upright as its EXIF says, in RGB.

    As in the original, transparency is dropped, not blended. Deep greyscale is scaled to 8 bits,
    where PIL's own conversion would clip all but the darkest 0.4 % to white.
    """
    image.seek(0)
    image.load()  # PIL turns a TIFF itself while loading it, and then forgets its orientation
    turn = UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    rgb = image.convert("RGB")
    rgb.info = {}  # it is upright now, whatever the EXIF block that PIL copies says
    return rgb


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where there is none or it cannot be read.

    Read by hand because ``ImageOps.exif_transpose`` also writes the EXIF block anew, and fails where
    any of its other tags is odd.
    """
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken block says nothing of the picture
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
