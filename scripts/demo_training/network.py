"""The demo model's sizes, and its decoder's initialization."""

from __future__ import annotations

from typing import Any

import torch

from model.demo.random_checkpoint import Preset, config_for
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.modeling import Phi3VForCausalLM

NAME = "phi3v-demo"
SIZES = Preset(
    hidden_size=192,
    intermediate_size=448,
    num_layers=4,
    num_heads=6,
    original_length=4096,
    max_length=131072,
    tower_width=192,
    tower_layers=9,  # the features are the output of the last but one
    tower_heads=4,
    tower_intermediate=384,
    num_crops=1,
)


def demo_config(vocab_size: int) -> dict[str, Any]:
    """The content of the demo's ``config.json``."""
    return {**config_for(SIZES, NAME), "vocab_size": vocab_size}


TOWER: dict[str, Any] = config_for(SIZES, NAME)["img_processor"]["vision_config"]
PATCH = int(TOWER["patch_size"])
SIDE = int(TOWER["image_size"]) // PATCH  # patches along a side of a view


def new_model(config: Phi3VConfig) -> Phi3VForCausalLM:
    """A model with a newly initialized decoder."""
    model = Phi3VForCausalLM(config).float()
    with torch.no_grad():
        for name, weight in model.model.layers.named_parameters():
            if weight.ndim == 2:
                out = 0.4 if "o_proj" in name or "down_proj" in name else 1.0
                weight.normal_(0, out * weight.shape[1] ** -0.5)
        model.model.embed_tokens.weight.normal_(0, 0.5)
        model.lm_head.weight.normal_(0, 0.3 * config.hidden_size**-0.5)
    return model
