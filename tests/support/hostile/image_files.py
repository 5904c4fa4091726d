"""Image files made byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

PNG_START = b"\x89PNG\r\n\x1a\n"


def overwritten(good: bytes, at: int, new: bytes) -> bytes:
    return good[:at] + new + good[at + len(new) :]


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    file = io.BytesIO()
    grey = Image.linear_gradient("L").resize(size)
    grey.convert(mode).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes, length: int | None = None, crc: int | None = None) -> bytes:
    size = len(data) if length is None else length
    checksum = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", size) + kind + data + struct.pack(">I", checksum)


def png_of(
    width: int, height: int, rows: bytes, *extra: bytes, depth: int = 8, colour: int = 0
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    parts = [*extra, chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")]
    return PNG_START + header + b"".join(parts)


def tiff_of(*entries: tuple[int, int, int, int], next_at: int = 0, tail: bytes = b"") -> bytes:
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + struct.pack("<I", next_at) + tail
    )


def exif(data: bytes) -> bytes:
    jpeg = saved("JPEG")
    segment = b"Exif\0\0" + data
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def animated(kind: str, count: int) -> bytes:
    frames = [Image.new("RGB", (64, 48), (i, 0, 0)) for i in range(count)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()
