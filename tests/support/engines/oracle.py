"""What transformers generates: answers to compare ours with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.phi3v.inputs.processing import PromptInputs
from model.phi3v.modeling import Phi3VForCausalLM


def tower_inputs(prompt: PromptInputs) -> dict[str, Any]:
    """The prompt's images as arguments of the model; none without images."""
    if not prompt.images:
        return {}
    images = prompt.decoded
    return {
        "pixel_values": [image.crops() for image in images],
        "image_grids": [image.grid for image in images],
    }


def greedy(network: Phi3VForCausalLM, ids: Tensor, count: int, **images: Any) -> list[int]:
    """The most probable ``count`` tokens after ``ids``, ``(1, T)``, by ``generate``."""
    anything: Any = network  # the type of ``generate`` asks for a class that no model is
    generated: Tensor = anything.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **images,
    )
    answer: list[int] = generated[0, ids.shape[1] :].tolist()
    return answer
