"""Random checkpoints in the official on-disk format, for tests and benchmarks.

File names, tensor names and config keys are those of ``microsoft/Phi-3-vision-128k-instruct``; the
tokenizer is from ``model.demo.tokenizer_files``. Weights are scaled so that activations keep their size
through the layers and logits spread as in a trained model, which makes greedy decoding stable. Each
tensor depends only on its name and the seed, not on sharding, so a ``text_only`` checkpoint has the same
decoder as the full one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from model.demo.tokenizer_files import VOCAB_SIZE, write_tokenizer
from model.phi3v.configuration import VIT_L_14_336, Phi3VConfig
from model.phi3v.modeling import official_shapes

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
LOGIT_SPREAD = 2.5  # standard deviation of the logits
VISION = "vision_embed_tokens"  # part of the names of all vision tensors
GENERATION_CONFIG = {"bos_token_id": 1, "eos_token_id": [32000, 32001, 32007]}


@dataclass(frozen=True)
class Preset:
    """Sizes of a random checkpoint."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    original_length: int
    max_length: int
    tower_width: int
    tower_layers: int
    tower_heads: int
    tower_intermediate: int
    num_crops: int = 16


PRESETS = {
    "tiny": Preset(64, 128, 2, 4, 1024, 8192, 32, 3, 2, 64),
    "bench": Preset(768, 2048, 8, 8, 4096, 131072, 128, 4, 4, 256),
    "bench-tower": Preset(768, 2048, 8, 8, 4096, 131072, 1024, 24, 16, 4096),
    # Official width, with enough layers to exceed any CPU cache: 1.1 GB to read per token.
    "large": Preset(3072, 8192, 4, 32, 4096, 131072, 128, 4, 4, 256),
    "full": Preset(3072, 8192, 32, 32, 4096, 131072, 1024, 24, 16, 4096),
}


def write_checkpoint(
    directory: Path,
    preset: Preset,
    seed: int = 0,
    name: str = "phi3v-random",
    max_shard_bytes: int = 5_000_000_000,
    text_only: bool = False,
    **changes: int,
) -> None:
    """Write a checkpoint of bfloat16 weights.

    Args:
        directory: created if missing; existing files are overwritten.
        preset: the sizes.
        seed: of the weights.
        name: the model's name in ``/info``.
        max_shard_bytes: larger checkpoints are split into several files with an index.
        text_only: write only the decoder, as a ``phi3`` checkpoint for programs without
            Phi-3-vision; its chat template produces the same tokens.
        changes: overrides of the preset's sizes.
    """
    preset = replace(preset, **changes)
    directory.mkdir(parents=True, exist_ok=True)
    config = config_for(preset, name)
    shapes = official_shapes(Phi3VConfig(**config))
    if text_only:
        config = text_config(config)
        shapes = {name: shape for name, shape in shapes.items() if VISION not in name}
        write_json(directory / "generation_config.json", GENERATION_CONFIG)
    else:
        write_json(directory / "preprocessor_config.json", preprocessor_config(preset))
    write_json(directory / "config.json", config)
    write_tokenizer(directory, chat_template=text_only)
    _write_weights(directory, shapes, seed, max_shard_bytes)


def _write_weights(
    directory: Path, shapes: dict[str, tuple[int, ...]], seed: int, max_shard_bytes: int
) -> None:
    shards = list(_shards(shapes, max_shard_bytes))
    total = sum(_num_bytes(shape) for shape in shapes.values())
    files: dict[str, str] = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="Writing weights") as bar:
        for number, names in enumerate(shards, 1):
            file = (
                "model.safetensors"
                if len(shards) == 1
                else f"model-{number:05}-of-{len(shards):05}.safetensors"
            )
            tensors = {}
            for name in names:
                tensors[name] = _random_tensor(name, shapes[name], seed)
                bar.update(_num_bytes(shapes[name]))
            save_file(tensors, directory / file, metadata={"format": "pt"})
            (directory / file).chmod(0o644)  # the library makes it readable only by its owner
            files.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": files}
        write_json(directory / "model.safetensors.index.json", index)


def _shards(shapes: dict[str, tuple[int, ...]], max_bytes: int) -> Iterator[list[str]]:
    """Tensor names in order, split where a file would become too large."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + _num_bytes(shape) > max_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += _num_bytes(shape)
    yield names


def _num_bytes(shape: tuple[int, ...]) -> int:
    return 2 * torch.Size(shape).numel()


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    if "norm" in name or "layrnorm" in name:
        constant = 0.0 if name.endswith("bias") else 1.0
        return torch.full(shape, constant, dtype=torch.bfloat16)
    if name == "lm_head.weight":
        std = LOGIT_SPREAD * shape[-1] ** -0.5
    elif "embed_tokens.weight" in name and "vision" not in name:
        std = 1.0
    elif len(shape) == 2 and "position_embedding" not in name:
        std = shape[-1] ** -0.5
    elif "patch_embedding" in name:
        std = torch.Size(shape[1:]).numel() ** -0.5
    else:
        std = 0.1  # biases, separators, positions, class token
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
    return torch.empty(shape).normal_(0.0, std, generator=generator).to(torch.bfloat16)


def config_for(preset: Preset, name: str) -> dict[str, Any]:
    """The content of ``config.json`` for a checkpoint with this name."""
    half = preset.hidden_size // preset.num_heads // 2
    growth = [i / max(half - 1, 1) for i in range(half)]
    tower = {
        **VIT_L_14_336,
        "hidden_size": preset.tower_width,
        "intermediate_size": preset.tower_intermediate,
        "num_hidden_layers": preset.tower_layers,
        "num_attention_heads": preset.tower_heads,
    }
    img_processor: dict[str, Any] = {
        "image_dim_out": preset.tower_width,
        "model_name": "openai/clip-vit-large-patch14-336",
        "name": "clip_vision_model",
        "num_img_tokens": 144,
    }
    if tower != VIT_L_14_336:
        img_processor["vision_config"] = tower
    return {
        "_name_or_path": name,
        "model_provider_name": "phi3v-server",
        "architectures": ["Phi3VForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "embd_layer": {
            "embedding_cls": "image",
            "hd_transform_order": "sub_glb",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        },
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": preset.hidden_size,
        "img_processor": img_processor,
        "initializer_range": 0.02,
        "intermediate_size": preset.intermediate_size,
        "max_position_embeddings": preset.max_length,
        "model_type": "phi3_v",
        "num_attention_heads": preset.num_heads,
        "num_hidden_layers": preset.num_layers,
        "num_key_value_heads": preset.num_heads,
        "original_max_position_embeddings": preset.original_length,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "long_factor": [1.03 * 60.0**g for g in growth],
            "short_factor": [1.05 + 2.0 * g for g in growth],
            "type": "su",
        },
        "rope_theta": 10000.0,
        "sliding_window": preset.max_length,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
    }


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the same decoder for transformers' own Phi-3 class."""
    vision = ("embd_layer", "img_processor")
    return {
        **{key: value for key, value in config.items() if key not in vision},
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "pad_token_id": 32000,
        "rope_scaling": {**config["rope_scaling"], "type": "longrope"},
    }


def preprocessor_config(preset: Preset) -> dict[str, Any]:
    """The content of ``preprocessor_config.json``."""
    return {
        "image_mean": CLIP_MEAN,
        "image_processor_type": "Phi3VImageProcessor",
        "image_std": CLIP_STD,
        "num_crops": preset.num_crops,
        "num_img_tokens": 144,
        "processor_class": "Phi3VProcessor",
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, indented."""
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
