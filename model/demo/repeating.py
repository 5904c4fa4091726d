"""Turns a random checkpoint into one whose greedy answers go round in circles.

It computes as much per token as any other of its size, and what it will say is known: what tests
and benchmarks of prompt lookup need.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FIRST_TOKEN = 1000  # the circle's tokens begin here: text, in any of our tokenizers


def make_repeating(directory: Path, period: int) -> None:
    """Change the weights of a checkpoint of one file.

    The layers add nothing to a token's embedding, and the head answers each token of the circle with
    the next; what lies outside leads in.

    Args:
        directory: the checkpoint.
        period: tokens in the circle.
    """
    file = directory / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    embedding_VE = weights["model.embed_tokens.weight"].float()
    direction_VE = embedding_VE / embedding_VE.square().mean(-1, keepdim=True).sqrt()
    circle = torch.arange(FIRST_TOKEN, FIRST_TOKEN + period)
    head_VE = torch.zeros_like(embedding_VE)
    head_VE[circle.roll(-1)] = direction_VE[circle]
    weights["lm_head.weight"] = head_VE.to(weights["lm_head.weight"].dtype)
    save_file(weights, file, metadata={"format": "pt"})
