"""Reads the input line by line, without keeping lines in memory that exceed the limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

READ_AT_A_TIME = 1 << 20  # bytes of an overlong line


@dataclass(frozen=True)
class Line:
    """One line of the input.

    Attributes:
        number: line number, from 1.
        data: content without surrounding white space; None if it is longer than the limit.
        size: bytes in the file.
    """

    number: int
    data: bytes | None
    size: int

    @property
    def is_empty(self) -> bool:
        """Whether the line is blank."""
        return self.data == b""


def read_lines(file: BinaryIO, limit: int) -> Iterator[Line]:
    """Read lines lazily, including blank ones.

    Args:
        file: read from its current position.
        limit: maximum bytes of a line.

    Raises:
        OSError: the file cannot be read; the error contains its name.
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
