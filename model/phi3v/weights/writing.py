"""Write safetensors files one tensor at a time, so that a checkpoint never has to fit into memory.

The format: the length of a JSON header in 8 bytes, the header, then the tensors' bytes one after another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.phi3v.weights.files import DTYPES

ALIGNMENT = 8  # of the first tensor, as the library writes it


def nbytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor, by the dtype's name in safetensors."""
    return torch.Size(shape).numel() * DTYPES[dtype].itemsize


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    read: Callable[[str], Tensor],
    progress: Callable[[int], object] = lambda size: None,
) -> None:
    """Write a file.

    Args:
        path: must not exist.
        tensors: shape and dtype of each, in the order in which they are written.
        read: a tensor by its name, of that shape and dtype; called in this order.
        progress: called with the number of bytes written since the last call.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, dtype) in tensors.items():
        end = offset + nbytes(shape, dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in tensors:
            for part in _parts(read(name)):
                file.write(part)
                progress(len(part))


def _parts(tensor: Tensor, size: int = 64 << 20) -> Iterable[memoryview]:
    """The tensor's bytes in parts, so that the progress moves."""
    whole = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    for start in range(0, len(whole), size):
        yield whole[start : start + size]
