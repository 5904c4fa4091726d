"""Reads the input one line at a time, and holds no line longer than the limit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

READ_AT_A_TIME = 1 << 20  # bytes of a line that is too long


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        number: counted from 1.
        data: without white space around it; None where it is longer than the limit.
        size: in the file, in bytes.
    """

    number: int
    data: bytes | None
    size: int

    @property
    def is_empty(self) -> bool:
        """Whether it is blank."""
        return self.data == b""


def read_lines(file: BinaryIO, limit: int) -> Iterator[Line]:
    """The lines of a file, blank ones too, read lazily.

    Args:
        file: read from where it stands.
        limit: bytes of the longest line that is kept.

    Raises:
        OSError: the file cannot be read; it has the file's name.
    """
    try:
        yield from _read(file, limit)
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error


def _read(file: BinaryIO, limit: int) -> Iterator[Line]:
    number = 0
    while data := file.readline(limit + 1):
        number += 1
        size = len(data)
        fits = size <= limit or data.endswith(b"\n")
        rest = data
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(READ_AT_A_TIME)
            size += len(rest)
        yield Line(number, data.strip() if fits else None, size)
