"""Which GPU computes which layers, where a model is spread over several.

The first GPU also has everything that is no layer: embeddings, the vision tower, the head, the sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def spread(num_layers: int, rooms: Sequence[int]) -> list[int]:
    """Layers of each GPU, such that the least room for a layer and its keys and values is largest.

    Layers are given out one by one, each to the GPU where it will have the most room (the method of
    D'Hondt). A GPU may get none.

    Args:
        num_layers: of the decoder.
        rooms: bytes of each GPU for layers and their keys and values.
    """
    counts = [0] * len(rooms)
    for _ in range(num_layers):
        best = max(range(len(rooms)), key=lambda gpu: rooms[gpu] / (counts[gpu] + 1))
        counts[best] += 1
    return counts


def device_map(devices: Sequence[torch.device], counts: Sequence[int]) -> dict[str, str]:
    """Where each module is loaded to, as accelerate takes it.

    Args:
        devices: the GPUs.
        counts: layers of each.
    """
    others = ("model.embed_tokens", "model.vision_embed_tokens", "model.norm", "model.rotary_emb")
    placed = dict.fromkeys((*others, "lm_head"), str(devices[0]))
    of_layers = [str(gpu) for gpu, count in zip(devices, counts, strict=True) for _ in range(count)]
    return placed | {f"model.layers.{index}": device for index, device in enumerate(of_layers)}
