"""Place a model's layers on several GPUs.

The first GPU also holds everything else: embeddings, vision tower, head and sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


def spread(num_layers: int, rooms: Sequence[int]) -> list[int]:
    """Number of layers of each GPU; maximizes the smallest memory per layer.

    Assigns layers one by one, each to the GPU with the most memory per layer (D'Hondt's method). A
    GPU may get none.

    Args:
        num_layers: of the decoder.
        rooms: bytes on each GPU for layers with their keys and values.
    """
    counts = [0] * len(rooms)
    for _ in range(num_layers):
        best = max(range(len(rooms)), key=lambda gpu: rooms[gpu] / (counts[gpu] + 1))
        counts[best] += 1
    return counts


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model that its devices hold besides what they work with.

    Attributes:
        num_layers: of the decoder.
        layers: all layers' weights.
        others: everything else, on the first device.
        block: keys and values of a block in all layers.
        held: what the first device holds for each block besides.
    """

    num_layers: int
    layers: int
    others: int
    block: int
    held: int

    def for_layers(self, rooms: Sequence[int]) -> list[int]:
        """The part of each device's room that layers may take."""
        return [rooms[0] - self.others, *rooms[1:]]

    def left(self, rooms: Sequence[int], counts: Sequence[int]) -> int:
        """Bytes left for blocks and what is held for them, on all devices together.

        The fullest device bounds the number of blocks. Negative if the weights do not fit.

        Args:
            rooms: bytes on each device that are not for working memory.
            counts: number of layers on each.
        """
        lefts = []
        for gpu, (room, count) in enumerate(zip(self.for_layers(rooms), counts, strict=True)):
            room -= -(-self.layers * count // self.num_layers)
            # What a block takes here, times the number of layers.
            share = self.block * count + (self.held * self.num_layers if gpu == 0 else 0)
            if share:
                lefts.append(room * self.num_layers * (self.block + self.held) // share)
            elif gpu == 0 and room < 0:  # it gets no layers, and is still too small
                lefts.append(room)
        return min(lefts)


def device_map(devices: Sequence[torch.device], counts: Sequence[int]) -> dict[str, str]:
    """The device of each module, in accelerate's format.

    Args:
        devices: the GPUs.
        counts: number of layers on each.
    """
    others = ("model.embed_tokens", "model.vision_embed_tokens", "model.norm", "model.rotary_emb")
    placed = dict.fromkeys((*others, "lm_head"), str(devices[0]))
    of_layers = [str(gpu) for gpu, count in zip(devices, counts, strict=True) for _ in range(count)]
    return placed | {f"model.layers.{index}": device for index, device in enumerate(of_layers)}
