"""What an adapter does to one tensor of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from model.errors import CheckpointError
from model.phi3v.weights.files import Header
from model.phi3v.weights.lora import (
    add_dora_to_linear,
    add_to_bias,
    add_to_convolution,
    add_to_embedding,
    add_to_linear,
)
from model.phi3v.weights.names import EMBEDDING, HEAD

VISION = ".vision_embed_tokens."


@dataclass(frozen=True)
class Change:
    """The tensors of an adapter's files that change one tensor of the model, and how.

    Attributes:
        replacement: takes the tensor's place, before anything is added.
        down, up: the factors of the update, ``lora_A`` and ``lora_B`` in PEFT; a bias has ``up`` only.
        magnitude: DoRA's norm of each output.
        kind: ``embedding`` if PEFT saved it as one.
        rank: of the factors, by the configuration.
        scaling: of the update.
    """

    replacement: str | None = None
    down: str | None = None
    up: str | None = None
    magnitude: str | None = None
    kind: Literal["layer", "embedding"] = "layer"
    rank: int = 0
    scaling: float = 0

    @property
    def factors(self) -> list[str]:
        """Names of the tensors that make the update."""
        return [key for key in (self.down, self.up, self.magnitude) if key is not None]

    def lacks(self, dora: bool) -> str | None:
        """Which part of the update is missing, in PEFT's words; None if it is complete.

        Args:
            dora: whether layers have a magnitude.
        """
        if not self.factors or self.is_bias:
            return None
        if self.down is None:
            return "lora_A"
        if self.up is None:
            return "lora_B"
        return "lora_magnitude_vector" if dora and self.magnitude is None else None

    @property
    def is_bias(self) -> bool:
        """Whether it changes a bias, which needs one factor only."""
        return self.up is not None and self.up.endswith(".bias")


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to, for logs."""
    if VISION in name:
        part = name.split(VISION)[1].split(".")[0]
        return {"img_processor": "tower", "img_projection": "projector"}.get(part, "separators")
    if name.startswith("model.layers."):
        layer = name.split(".")[-2]
        return "norms" if layer.endswith("norm") else layer
    return {EMBEDDING: "embeddings", HEAD: "head"}.get(name, "norms")


def check_shapes(
    name: str, change: Change, shape: tuple[int, ...], header: Callable[[str], Header]
) -> None:
    """Raise CheckpointError if the factors do not fit the tensor or the rank.

    Args:
        name: official name of the model's tensor.
        change: what is done to it.
        shape: of the tensor.
        header: of a tensor in the adapter's files.
    """
    if change.magnitude is not None and (len(shape) != 2 or change.kind == "embedding"):
        raise CheckpointError(f"{name} has DoRA, which is merged in linear layers only")
    expected = _expected_shapes(change, shape)
    for key in change.factors:
        found = header(key).shape
        if found != expected[key]:
            raise CheckpointError(
                f"{key} has the shape {list(found)}, expected {list(expected[key])} for rank "
                f"{change.rank} and {name} of {list(shape)}"
            )


def _expected_shapes(change: Change, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    rank = change.rank
    if change.is_bias or len(shape) < 2:
        down: tuple[int, ...] = (rank,)
        up = shape
    elif change.kind == "embedding":
        down, up = (rank, shape[0]), (shape[1], rank)
    else:
        down, up = (rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))
    of = {change.down: down, change.up: up, change.magnitude: shape[:1]}
    return {key: expected for key, expected in of.items() if key is not None}


def add(change: Change, tensor: Tensor, read: Callable[[str], Tensor]) -> Tensor:
    """A tensor with the update added.

    Args:
        change: with shapes that were checked.
        tensor: of the model, on the CPU.
        read: a tensor of the adapter's files by its name.
    """
    if change.up is None:
        return tensor
    up = read(change.up)
    if change.is_bias:
        return add_to_bias(tensor, up, change.scaling)
    assert change.down is not None
    down = read(change.down)
    if change.kind == "embedding":
        return add_to_embedding(tensor, down, up, change.scaling)
    if tensor.ndim == 4:
        return add_to_convolution(tensor, down, up, change.scaling)
    if change.magnitude is not None:
        return add_dora_to_linear(tensor, down, up, change.scaling, read(change.magnitude))
    return add_to_linear(tensor, down, up, change.scaling)
