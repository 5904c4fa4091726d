"""Load a checkpoint's weights onto their devices, merge an adapter into them, and quantize them.

A tensor is merged, rounded to the model's dtype and quantized before the next one is read, so that no
second copy of the weights is ever needed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor
from tqdm import tqdm

from model.cpu.memory import release
from model.engine.config import LoadOptions
from model.engine.loading.memory_plan import DTYPES
from model.errors import CheckpointError
from model.phi3v.adapters.adapter import Adapter
from model.phi3v.adapters.configuration import CONFIG as ADAPTER_CONFIG
from model.phi3v.checkpoint import first_line
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.weights.files import open_all
from model.phi3v.weights.names import Naming, official_name
from model.phi3v.weights.quantization import quantize_linears


def load_weights(
    directory: Path,
    options: LoadOptions,
    places: dict[str, str],
    naming: Naming,
    adapter: Adapter | None = None,
) -> Phi3VForCausalLM:
    """Load a model.

    Args:
        directory: the checkpoint.
        options: with a resolved dtype, not ``auto``.
        places: the device of each module, in accelerate's format.
        naming: of the tensors in the checkpoint's files.
        adapter: to merge, if any.

    Raises:
        CheckpointError: the files are incomplete, or do not fit the configuration.
    """
    dtype = DTYPES[options.dtype]
    if options.quantization == "none":
        model = _load_model(directory, dtype, places, naming)
        _merge(model, adapter)
        return model

    def merged(name: str, weight: Tensor) -> Tensor:
        return weight if adapter is None else adapter.merged(official_name(name), weight)

    # Quantize in main memory: the unquantized weights may not fit on the GPU.
    model = _load_model(directory, "auto", {"": "cpu"}, naming)
    quantize_linears(model, options.quantization, merged)
    _merge(model, adapter)
    for name, device in places.items():
        model.get_submodule(name).to(device, dtype)
    return model


@torch.inference_mode()
def _merge(model: Phi3VForCausalLM, adapter: Adapter | None) -> None:
    """Merge an adapter into all weights that are not quantized, in place."""
    if adapter is None:
        return
    changed = [
        (official_name(name), parameter)
        for name, parameter in model.named_parameters()
        if official_name(name) in adapter.changes
    ]
    for name, parameter in tqdm(changed, desc="Merging adapter"):
        old = parameter.data
        merged = adapter.merged(name, old.cpu())
        if old.device.type == "cpu":
            parameter.data = merged.contiguous()  # the old one may be memory-mapped
            release(old)
        elif merged.shape == old.shape:
            old.copy_(merged)
        else:
            parameter.data = merged.to(old.device)
    if adapter.vocab_size is not None:
        model.config.vocab_size = model.vocab_size = adapter.vocab_size
        model.model.embed_tokens.num_embeddings = adapter.vocab_size
        model.lm_head.out_features = adapter.vocab_size


def _load_model(
    directory: Path,
    dtype: torch.dtype | Literal["auto"],
    places: dict[str, str],
    naming: Naming,
) -> Phi3VForCausalLM:
    # transformers prints a table of all mismatched tensors; the errors below name one.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if naming.unmerged:
        raise CheckpointError(
            f"the checkpoint in {directory} contains an adapter that was not merged, e.g. "
            f"{naming.unmerged[0]}; save the adapter alone and pass it with --lora"
        )
    try:
        # Beside an adapter's configuration transformers would load the adapter and the base that it names.
        as_it_is = naming.is_official and not (directory / ADAPTER_CONFIG).exists()
        source = {} if as_it_is else _renamed(directory, naming)
        loaded: Any = Phi3VForCausalLM.from_pretrained(
            directory if as_it_is else None,
            dtype=dtype,
            device_map=places,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            use_safetensors=True,
            local_files_only=True,
            **source,
        )
    except Exception as error:
        raise unloadable(directory, error) from error
    model, report = loaded
    if report["mismatched_keys"]:
        name, found, expected = min(report["mismatched_keys"])
        raise CheckpointError(
            f"the checkpoint in {directory} does not fit its config.json: {name} has the shape "
            f"{list(found)}, expected {list(expected)}"
        )
    for what in ("missing_keys", "unexpected_keys"):
        if names := sorted(map(str, report[what])):
            raise CheckpointError(
                f"the checkpoint in {directory} has {len(names)} {what.replace('_keys', '')} "
                f"tensors, e.g. {names[0]}"
            )
    assert isinstance(model, Phi3VForCausalLM)
    # The decoder bypasses the modules that accelerate's hooks wrap.
    remove_hook_from_module(model, recurse=True)
    return model.eval().requires_grad_(False)


def _renamed(directory: Path, naming: Naming) -> dict[str, Any]:
    """Arguments to load a checkpoint's tensors by their official names; they are memory-mapped."""
    files = list(open_all(directory))
    official = {name: official for official, name in naming.names.items()}
    tensors = {
        official[name]: file.tensor(name)
        for file in files
        for name in file.headers
        if name in official
    }
    return {"config": Phi3VConfig.from_pretrained(directory), "state_dict": tensors}


def unloadable(directory: Path, error: Exception) -> CheckpointError:
    """The error for a checkpoint that a library cannot load."""
    return CheckpointError(f"the checkpoint in {directory} cannot be loaded: {first_line(error)}")
