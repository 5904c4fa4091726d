"""The output file: reads the results of earlier runs and appends new ones.

A run may be killed at any time. The next run truncates an incomplete last line and processes the
requests that have no result.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from pydantic import BaseModel, ValidationError

from server.errors import ApiError, short_name
from server.schemas.batch import BatchResult

PIECES_PER_WRITE = 256
START = b'{"id":"batch_req_'  # of every line


class ResultsError(Exception):
    """The output file cannot be used; the message says why."""


class _LineError(BaseModel):
    line: int


class _Written(BaseModel):
    """The fields of a result that identify its input line."""

    custom_id: str | None
    error: _LineError | None


class Results:
    """The output file, locked against other runs until it is closed.

    Args:
        path: created if missing.

    Raises:
        ResultsError: the file contains something else, or another batch is using it.
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._claimed: dict[str, bool] = {}  # custom_id -> whether this run has seen it
        self._lines: set[int] = set()  # input lines without a custom_id that have a result
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._lock()
            self._read()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResultsError(f"{self._path} is in use by another batch") from error

    def _read(self) -> None:
        whole = 0  # bytes
        with self._path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n") and line[: len(START)] == START[: len(line)]:
                    break
                try:
                    written = _Written.model_validate_json(line)
                except ValidationError as error:
                    raise ResultsError(
                        f"line {number} of {self._path} is not a batch result; choose a new output "
                        "file, or one that an earlier run wrote"
                    ) from error
                if written.custom_id is not None:
                    self._claimed[written.custom_id] = False
                elif written.error is not None:
                    self._lines.add(written.error.line)
                whole += len(line)
        os.ftruncate(self._descriptor, whole)

    def claim(self, custom_id: str) -> bool:
        """Return whether to process a request: False if an earlier run has written its result.

        Raises:
            ApiError: 422, an earlier line of this run has the same custom_id.
        """
        if self._claimed.get(custom_id):
            raise ApiError(
                422,
                "duplicate_custom_id",
                f"custom_id {short_name(custom_id)!r} is already used by an earlier line; make it "
                "unique",
                ("custom_id",),
                custom_id,
            )
        new = custom_id not in self._claimed
        self._claimed[custom_id] = True
        return new

    def has_line(self, number: int) -> bool:
        """Whether an earlier run has written an error for this line without a custom_id."""
        return number in self._lines

    def write(self, result: BatchResult, body: Iterable[bytes]) -> None:
        """Append a result.

        Args:
            result: the result with an empty body.
            body: the body's JSON, in pieces.

        Raises:
            OSError: the file cannot be written.
        """
        begin, mark, end = result.model_dump_json().encode().partition(b'"body":{}')
        pieces = [begin + mark.removesuffix(b"{}")]
        for piece in chain(body, [end + b"\n"]):
            pieces.append(piece)
            if len(pieces) == PIECES_PER_WRITE:
                self._write(b"".join(pieces))
                pieces.clear()
        self._write(b"".join(pieces))

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def close(self) -> None:
        """Close and unlock the file."""
        os.close(self._descriptor)
