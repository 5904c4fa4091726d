"""A checkpoint's weight files: which ones there are, their headers, and their tensors.

Headers are read without the tensors. Tensors of safetensors files are memory-mapped.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.errors import CheckpointError
from model.phi3v.checkpoint import first_line, read_json

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
PICKLED_INDEX, PICKLED_WEIGHTS = "pytorch_model.bin.index.json", "pytorch_model.bin"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PLAIN_NAME = re.compile(r"[^/\\\0]+")  # a file in the same folder


@dataclass(frozen=True)
class Header:
    """A tensor's entry in the header of a safetensors file."""

    file: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Problem:
    """Something wrong with a checkpoint's files.

    Attributes:
        subject: the file.
        text: what is wrong with it.
    """

    subject: str
    text: str


class TensorFile(Protocol):
    """An open file of tensors.

    Attributes:
        headers: of all its tensors, by name.
    """

    headers: dict[str, Header]

    def tensor(self, name: str) -> Tensor:
        """A tensor on the CPU; memory-mapped where possible."""
        ...


class SafetensorsFile:
    """A safetensors file; see ``TensorFile``. Raises CheckpointError if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.headers = _headers_or_error(path)
        self._opened = safe_open(path, framework="pt")

    def tensor(self, name: str) -> Tensor:
        """See ``TensorFile``."""
        tensor: Tensor = self._opened.get_tensor(name)
        return tensor


class PickledFile:
    """A file of ``torch.save``, from which only tensors are read, never code; see ``TensorFile``.

    Raises:
        CheckpointError: it cannot be read without running code, or holds more than tensors.
    """

    def __init__(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                packed = any(entry.compress_type for entry in archive.infolist())
            if packed:  # could unpack to any size
                raise ValueError("it is a compressed archive, which torch.save does not write")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # pickles break in many ways
            raise CheckpointError(
                f"{path.name} is not a file of plain tensors in torch.save's zip format: "
                f"{first_line(error)}"
            ) from error
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
        ):
            raise CheckpointError(f"{path.name} does not contain a dictionary of tensors only")
        for name, value in content.items():
            if not _is_plain(value):
                raise CheckpointError(
                    f"{name[:200]!r} in {path.name} is not a plain tensor: it is sparse, has no values, or "
                    "repeats fewer values than it has places for"
                )
        self._content: dict[str, Tensor] = content
        self.headers = {
            name: Header(path.name, tuple(value.shape), _dtype_name(value.dtype))
            for name, value in self._content.items()
        }

    def tensor(self, name: str) -> Tensor:
        """See ``TensorFile``."""
        return self._content[name].detach()


def _is_plain(tensor: Tensor) -> bool:
    """Whether the file holds all of a tensor's values; else a small file could stand for any size."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.itemsize


def _dtype_name(dtype: torch.dtype) -> str:
    return DTYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))


def weight_files(
    directory: Path, weights: str = WEIGHTS, index: str = INDEX
) -> tuple[list[str], dict[str, str] | None, list[Problem]]:
    """Files to read, the index from tensors to files if there is one, and problems.

    Args:
        directory: of the checkpoint.
        weights: name of the only file, which is preferred, as transformers does.
        index: name of the index of several files.
    """
    if (directory / weights).exists():
        return [weights], None, []
    if not (directory / index).exists():
        return [], None, [Problem(weights, f"is missing, and so is {index}")]
    try:
        places = read_json(directory / index).get("weight_map")
    except CheckpointError as error:
        return [], None, [Problem(index, first_line(error))]
    if not isinstance(places, dict) or not all(isinstance(to, str) for to in places.values()):
        return [], None, [Problem(index, "has no weight_map from tensors to files")]
    files = sorted(set(places.values()))
    if elsewhere := [file for file in files if not PLAIN_NAME.fullmatch(file)]:
        text = f"lists {elsewhere[0]!r}, which is not the name of a file in the same folder"
        return [], None, [Problem(index, text)]
    missing = [file for file in files if not (directory / file).is_file()]
    problems = [Problem(file, f"is missing, but listed in {index}") for file in missing]
    return [file for file in files if file not in missing], places, problems


def read_headers(directory: Path) -> dict[str, Header]:
    """Shapes and dtypes of all tensors of a checkpoint, by their names in the files.

    Raises:
        CheckpointError: files are missing or cannot be read.
    """
    files, _, problems = weight_files(directory)
    if problems:
        raise CheckpointError(f"{problems[0].subject} {problems[0].text}")
    headers: dict[str, Header] = {}
    for file in files:
        headers |= _headers_or_error(directory / file)
    return headers


def read_file_headers(path: Path) -> dict[str, Header]:
    """Shapes and dtypes of one safetensors file; the library checks the file's size."""
    with safe_open(path, framework="pt") as opened:
        names = opened.keys()
        slices: dict[str, Any] = {name: opened.get_slice(name) for name in names}
        return {
            name: Header(path.name, tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        }


def open_all(directory: Path) -> Iterator[SafetensorsFile]:
    """The checkpoint's safetensors files, one after the other; raises CheckpointError."""
    files, _, problems = weight_files(directory)
    if problems:
        raise CheckpointError(f"{problems[0].subject} {problems[0].text}")
    for file in files:
        yield SafetensorsFile(directory / file)


def _headers_or_error(path: Path) -> dict[str, Header]:
    try:
        return read_file_headers(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {first_line(error)}") from error
