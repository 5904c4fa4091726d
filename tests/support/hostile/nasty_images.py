"""Image files that are broken, odd or hostile, made from scratch: name to bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial

from PIL import Image

from tests.support.hostile.image_files import (
    PNG_START,
    animated,
    chunk,
    exif,
    overwritten,
    png_of,
    saved,
    tiff_of,
)

NASTY: dict[str, Callable[[], bytes]] = {}


def nasty(function: Callable[[], bytes]) -> Callable[[], bytes]:
    NASTY[function.__name__.replace("_", " ")] = function
    return function


def damage(kind: str) -> None:
    """Add files of that kind that are not what was saved."""
    whole = saved(kind)
    half = len(whole) // 2
    NASTY[f"{kind} cut in half"] = lambda: whole[:half]
    NASTY[f"{kind} without its end"] = lambda: whole[:-7]
    NASTY[f"{kind} of 12 bytes"] = lambda: whole[:12]
    NASTY[f"{kind} with noise in it"] = lambda: whole[:half] + bytes(range(256)) + whole[half:]
    NASTY[f"{kind} with a tail"] = lambda: whole + b"<script>alert(1)</script>" * 1000
    NASTY[f"{kind} of zeros after its head"] = lambda: whole[:40] + bytes(len(whole))


for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
    damage(kind)
for mode, kind in [
    *[("1", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG")],
    *[("CMYK", "JPEG"), ("L", "JPEG"), ("CMYK", "TIFF"), ("F", "TIFF"), ("I;16", "TIFF")],
    *[("LAB", "TIFF"), ("YCbCr", "TIFF"), ("I", "TIFF"), ("RGBA", "WEBP"), ("P", "BMP")],
]:
    if mode.startswith("I;") or mode == "LAB":

        def odd(mode: str = mode, kind: str = kind) -> bytes:
            file = io.BytesIO()
            Image.new(mode, (64, 48), 0 if mode == "I;16" else (50, 0, 0)).save(file, kind)
            return file.getvalue()

        NASTY[f"{mode} {kind}"] = odd
    else:
        NASTY[f"{mode} {kind}"] = partial(saved, kind, mode)


@nasty
def animated_gif() -> bytes:
    return animated("GIF", 200)


@nasty
def animated_png() -> bytes:
    return animated("PNG", 50)


@nasty
def pixel_bomb_of_400_megapixels() -> bytes:
    return png_of(20_000, 20_000, bytes((20_000 // 8 + 1) * 20_000), depth=1)


@nasty
def pixel_bomb_within_the_limit() -> bytes:
    return png_of(7000, 7000, bytes(7001 * 7000))


@nasty
def deep_colour_within_the_limit() -> bytes:
    return png_of(3000, 3000, bytes((3000 * 8 + 1) * 3000), depth=16, colour=6)


@nasty
def png_of_the_largest_size() -> bytes:
    return png_of(2**31 - 1, 2**31 - 1, b"\0")


@nasty
def png_of_no_size() -> bytes:
    return png_of(0, 0, b"")


@nasty
def one_pixel() -> bytes:
    return saved("PNG", size=(1, 1))


@nasty
def one_pixel_high() -> bytes:
    return png_of(50_000, 1, bytes(50_001))


@nasty
def png_with_more_rows_than_it_says() -> bytes:
    return png_of(8, 8, bytes(50_000_000))


@nasty
def png_with_fewer_rows_than_it_says() -> bytes:
    return png_of(800, 800, bytes(100))


@nasty
def png_with_a_wrong_checksum() -> bytes:
    good = saved("PNG")
    at = good.index(b"IDAT") - 4
    return good[:at] + chunk(b"IDAT", b"xx", crc=1) + good[at:]


@nasty
def png_with_a_chunk_of_2_gb() -> bytes:
    return PNG_START + chunk(b"IHDR", bytes(13), length=2**31 - 1)


@nasty
def png_with_a_text_bomb() -> bytes:
    text = b"key\0\0" + zlib.compress(bytes(200_000_000), 9)
    return png_of(8, 8, bytes(72), chunk(b"zTXt", text))


@nasty
def png_with_a_profile_bomb() -> bytes:
    profile = b"key\0\0" + zlib.compress(bytes(200_000_000), 9)
    return png_of(8, 8, bytes(72), chunk(b"iCCP", profile))


@nasty
def png_with_a_hundred_thousand_chunks() -> bytes:
    return png_of(8, 8, bytes(72), chunk(b"tEXt", b"a\0b") * 100_000)


@nasty
def png_without_a_palette() -> bytes:
    return png_of(8, 8, bytes(72), colour=3)


@nasty
def png_of_a_colour_type_that_is_none() -> bytes:
    return png_of(8, 8, bytes(72), colour=5)


@nasty
def jpeg_of_the_largest_size() -> bytes:
    good = saved("JPEG")
    return overwritten(good, good.index(b"\xff\xc0") + 5, b"\xff\xff\xff\xff")


@nasty
def progressive_jpeg_of_many_scans() -> bytes:
    good = saved("JPEG", size=(2000, 2000), progressive=True)
    scan = good.rindex(b"\xff\xda")
    return good[:scan] + good[scan:-2] * 300 + good[-2:]


@nasty
def jpeg_without_tables() -> bytes:
    good = saved("JPEG")
    at = good.index(b"\xff\xdb")
    size = struct.unpack(">H", good[at + 2 : at + 4])[0]
    return good[:at] + good[at + 2 + size :]


@nasty
def jpeg_of_markers() -> bytes:
    return b"\xff\xd8" + b"\xff\xe0\0\2" * 1_000_000 + saved("JPEG")[2:]


@nasty
def exif_that_points_at_itself() -> bytes:
    return exif(tiff_of((0x8769, 4, 1, 8), next_at=8))


@nasty
def exif_of_the_largest_count() -> bytes:
    return exif(tiff_of((0x0112, 3, 2**32 - 1, 8)))


@nasty
def exif_orientation_of_99() -> bytes:
    return exif(tiff_of((0x0112, 3, 1, 99)))


@nasty
def exif_of_nonsense() -> bytes:
    return exif(b"\xff" * 5000)


@nasty
def tiff_that_points_at_itself() -> bytes:
    good = saved("TIFF")
    return tiff_of((256, 4, 1, 8), (257, 4, 1, 8), (330, 4, 1, 8), next_at=8, tail=good)


@nasty
def tiff_of_many_frames() -> bytes:
    frames = [Image.new("L", (64, 48), i) for i in range(100)]
    file = io.BytesIO()
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    return file.getvalue()


@nasty
def tiff_of_the_largest_strip() -> bytes:
    return tiff_of(
        *[(256, 4, 1, 100), (257, 4, 1, 100), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)],
        *[(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 100), (279, 4, 1, 2**32 - 1)],
    )


@nasty
def tiff_compressed_a_thousandfold() -> bytes:
    return saved("TIFF", size=(7000, 7000), compression="tiff_adobe_deflate")


@nasty
def gif_of_no_frames() -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", 64, 48, 0, 0, 0) + b";"


@nasty
def gif_of_the_largest_size() -> bytes:
    return overwritten(saved("GIF"), 6, b"\xff\xff\xff\xff")


@nasty
def gif_with_a_frame_outside() -> bytes:
    good = saved("GIF")
    return overwritten(good, good.index(b",") + 1, b"\xf0\xf0\xf0\xf0")


@nasty
def bmp_with_a_negative_size() -> bytes:
    return overwritten(saved("BMP"), 18, struct.pack("<ii", -64, -(2**31)))


@nasty
def bmp_of_a_depth_that_is_none() -> bytes:
    return overwritten(saved("BMP"), 28, struct.pack("<H", 77))


@nasty
def bmp_with_its_pixels_far_away() -> bytes:
    return overwritten(saved("BMP"), 10, b"\xff\xff\xff\xff")


@nasty
def webp_of_another_length() -> bytes:
    return overwritten(saved("WEBP"), 4, b"\xff\xff\xff\xff")


@nasty
def gif_that_is_a_zip_and_a_page() -> bytes:
    return saved("GIF") + b"PK\x03\x04" + bytes(100) + b"<html><script>" + b"PK\x05\x06" + bytes(18)


@nasty
def a_page() -> bytes:
    return b"<!doctype html><svg onload=alert(1)>"


@nasty
def an_svg() -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


@nasty
def postscript() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(w) file\n%%EOF\n"


@nasty
def an_icon() -> bytes:
    return saved("ICO")


@nasty
def portable_pixels() -> bytes:
    return saved("PPM")


@nasty
def zeros() -> bytes:
    return bytes(1_000_000)
