"""Changes a random checkpoint so that its greedy answers repeat a cycle of tokens.

The answers are known and the cost per token is unchanged, for tests and benchmarks of prompt lookup.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FIRST_TOKEN = 1000  # of the cycle; text in all of our tokenizers


def make_repeating(directory: Path, period: int) -> None:
    """Change the weights of a single-file checkpoint.

    The layers add nothing to a token's embedding, and the head maps each token of the cycle to the next;
    other tokens lead into the cycle.

    Args:
        directory: the checkpoint.
        period: number of tokens in the cycle.
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
