"""Place a model's layers on several GPUs.

The first GPU also holds everything else: embeddings, vision tower, head and sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

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
