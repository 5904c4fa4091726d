"""Adapters as PEFT makes them, and the models that PEFT merges."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.weights.names import official_name

DECODER = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
PROJECTOR = ["img_projection.0", "img_projection.2"]
TOWER = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
EVERYTHING = [*DECODER, *PROJECTOR, *TOWER, "lm_head", "embed_tokens", "position_embedding"]
WEIGHTS = "adapter_model.safetensors"


def load_base(checkpoint: Path, dtype: torch.dtype = torch.float32) -> Phi3VForCausalLM:
    return Phi3VForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()


def make_adapter(checkpoint: Path, out: Path, seed: int = 0, **settings: Any) -> Path:
    """An adapter with random factors, as after training; returns ``out``."""
    torch.manual_seed(seed)
    chosen: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": DECODER} | settings
    base: Any = load_base(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of embeddings, which are saved as well
        wrapped = get_peft_model(base, LoraConfig(init_lora_weights=False, **chosen))
        for name, parameter in wrapped.named_parameters():
            if (parameter.requires_grad and "lora_" not in name) or "magnitude" in name:
                nn.init.normal_(parameter.data, float(parameter.data.mean()), 0.1)
        wrapped.save_pretrained(str(out))
    return out


def with_peft(checkpoint: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model with an adapter beside its weights."""
    base: Any = load_base(checkpoint, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base, str(adapter)).eval()


def merged_by_peft(checkpoint: Path, adapter: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors after ``merge_and_unload``, by their official names."""
    merged = with_peft(checkpoint, adapter, dtype).merge_and_unload()
    return {official_name(name): tensor for name, tensor in merged.state_dict().items()}


def rename_keys(file: Path, *pairs: tuple[str, str]) -> None:
    """Replace parts of the names of a file's tensors."""
    renamed = {}
    for name, tensor in load_file(file).items():
        for old, new in pairs:
            name = name.replace(old, new)
        renamed[name] = tensor
    save_file(renamed, file, {"format": "pt"})


def change_tensors(file: Path, **changes: Tensor | None) -> None:
    """Replace, add or (with None) remove tensors of a file."""
    tensors: dict[str, Tensor | None] = {**load_file(file), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, file, {"format": "pt"})


def change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
