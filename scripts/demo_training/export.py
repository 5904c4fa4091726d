"""Exports trained weights as a checkpoint in the official on-disk format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.demo.random_checkpoint import preprocessor_config, write_json
from model.phi3v.configuration import Phi3VConfig
from scripts.demo_training.language.stage import Speaker
from scripts.demo_training.network import SIZES, demo_config, new_model
from scripts.demo_training.tower.shifts import clip_tower
from scripts.demo_training.tower.stage import SCALE, TowerTrainee

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def config_for(tokenizer: Path) -> dict[str, Any]:
    """The content of ``config.json`` for a tokenizer; ``vocab_size`` is a multiple of 16."""
    spec = json.loads((tokenizer / "tokenizer.json").read_text("utf-8"))
    last = max(token["id"] for token in spec["added_tokens"])
    return demo_config(-(-(last + 1) // 16) * 16)


def export(
    directory: Path, training: Path, sight: TowerTrainee, language: dict[str, Tensor]
) -> None:
    """Write the checkpoint, in bfloat16.

    Args:
        directory: of the checkpoint; created if missing.
        training: directory of the training state, with the tokenizer.
        sight: the trained tower, projection and separators.
        language: weights of ``Speaker``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = config_for(training)
    model = new_model(Phi3VConfig(**config))
    Speaker(model).load_state_dict(language)
    embedding = model.model.vision_embed_tokens
    embedding.img_processor.load_state_dict(clip_tower(sight.tower).state_dict())
    embedding.img_projection.load_state_dict(sight.projection.state_dict())
    with torch.no_grad():
        embedding.img_projection[0].weight.mul_(SCALE)
        for separator, trained in zip(
            (embedding.sub_GN, embedding.glb_GN), sight.separators, strict=True
        ):
            separator.copy_((trained / SCALE).view_as(separator))
    tensors = {
        name.replace("img_processor.", "img_processor.vision_model."): tensor.to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    write_json(directory / "config.json", config)
    write_json(directory / "preprocessor_config.json", preprocessor_config(SIZES))
    for name in TOKENIZER_FILES:
        (directory / name).write_bytes((training / name).read_bytes())
