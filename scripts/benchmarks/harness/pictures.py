"""Random images that no cache holds: smooth noise in JPEG files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from model.phi3v.inputs.chat import MessageImage

LARGE = (1900, 1069)  # width and height; about 2,500 tokens


def picture(size: tuple[int, int], seed: int) -> MessageImage:
    """An image of the given size, different for every seed."""
    file = jpeg(size, seed)
    return MessageImage(lambda: Image.open(io.BytesIO(file)))


def jpeg(size: tuple[int, int], seed: int) -> bytes:
    """A JPEG file of such an image."""
    width, height = size
    noise = np.random.default_rng(seed).integers(
        0, 256, (height // 40 + 2, width // 40 + 2, 3), np.uint8
    )
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()
