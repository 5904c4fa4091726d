"""What fits into a GPU's or a machine's memory, without having one: the memory plan of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from model.demo.random_checkpoint import PRESETS, config_for
from model.engine.config import GIB, DType, LoadOptions
from model.engine.loading.load import adapter_name, devices_for, dtype_for, effective_headers
from model.engine.loading.machine import Machine
from model.engine.loading.memory_parts import Weights
from model.engine.loading.memory_plan import DTYPES, MemoryPlan, plan_memory
from model.hub import OFFICIAL, find_adapter
from model.phi3v.adapters.adapter import Adapter
from model.phi3v.adapters.model_files import model_config, model_shapes
from model.phi3v.checkpoint import read_json
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.weights.files import Header, read_headers
from model.starting import find_checkpoint


@dataclass(frozen=True)
class Sizing:
    """What fits.

    Attributes:
        plan: how the memory is used, in bytes.
        dtype, quantization: of the weights.
        context_window: of the checkpoint, in tokens.
        adapter: name of the adapter, which is merged and takes no memory of its own.
        tower_bytes: of the vision tower's weights, which are in the plan's ``vision``.
    """

    plan: MemoryPlan
    dtype: str
    quantization: str
    context_window: int
    adapter: str | None
    tower_bytes: int

    @property
    def tokens(self) -> int:
        """Tokens of all sequences together, with the cached ones."""
        return self.plan.num_blocks * self.plan.block_size

    def sequences(self, tokens: int) -> int:
        """How many sequences of a length fit at once."""
        return self.plan.num_blocks // -(-tokens // self.plan.block_size)

    def lines(self, tokens: int) -> list[str]:
        """The plan as a table.

        Args:
            tokens: length of the sequences to count.
        """
        plan = self.plan
        kind = self.dtype if self.quantization == "none" else self.quantization
        rows = {
            "weights": f"{plan.weights / GIB:.2f} GiB, {kind}",
            "vision": f"{plan.vision / GIB:.2f} GiB, with the embedding cache",
            "headroom": f"{plan.headroom / GIB:.2f} GiB",
            "KV cache": f"{plan.kv_cache / GIB:.2f} GiB for {self.tokens} tokens",
            "total": f"{plan.total / GIB:.2f} of {plan.available / GIB:.2f} GiB",
            "sequence": f"at most {plan.max_model_len} of {self.context_window} tokens",
            "sequences": f"{self.sequences(tokens)} of {tokens} tokens fit; a step computes at most "
            f"{plan.max_num_seqs}",
            "adapter": f"{self.adapter or 'any'}: merged into the weights, takes no memory",
        }
        return [f"{name:11}{text}" for name, text in rows.items()]


def size(options: LoadOptions, memory: float) -> Sizing:
    """Plan the memory of a model.

    Args:
        options: as for loading; a device of ``auto`` is a GPU.
        memory: GiB that are free on each GPU, or on a machine for ``cpu``.

    Raises:
        CheckpointError: the model does not fit, or cannot be read.
    """
    raw, headers = _model(options)
    device = torch.device("cpu" if options.device == "cpu" else "cuda")
    config = Phi3VConfig(**raw)
    options = replace(options, dtype=_dtype(options, device, raw))
    adapter = None
    if options.lora is not None:
        directory = find_adapter(options.lora, options.lora_revision)
        adapter = Adapter(directory, model_shapes(config), adapter_name(options.lora))
    share = options.gpu_memory_utilization if device.type == "cuda" else 1
    text = f"{share:g} of {memory:g} GiB" if share < 1 else f"{memory:g} GiB"
    machine = Machine(device, int(memory * GIB * share), text, int(memory * GIB))
    count = options.pipeline_parallel_size if device.type == "cuda" else 1
    merged = effective_headers(headers, adapter)
    plan = plan_memory(
        merged,
        config,
        options,
        [machine] * count,
        0 if adapter is None else adapter.work_bytes(),
    )
    return Sizing(
        plan,
        options.dtype,
        options.quantization,
        config.context_window,
        None if adapter is None else adapter.name,
        Weights.of(merged, DTYPES[options.dtype], options.quantization).tower,
    )


def _model(options: LoadOptions) -> tuple[dict[str, Any], dict[str, Header]]:
    """Configuration and headers; those of the official model are known without downloading it."""
    if options.model == OFFICIAL:
        raw = config_for(PRESETS["full"], OFFICIAL)
        shapes = model_shapes(Phi3VConfig(**raw))
        return raw, {name: Header("", shape, "BF16") for name, shape in shapes.items()}
    directory = find_checkpoint(options.model, options.revision)
    raw = read_json(directory / "config.json")
    model_config(directory, raw)
    return raw, read_headers(directory)


def _dtype(options: LoadOptions, device: torch.device, raw: dict[str, Any]) -> DType:
    """Like the server's choice on a GPU that has bfloat16, as all since Ampere do."""
    if device.type == "cpu":
        return dtype_for(options.dtype, devices_for(replace(options, device="cpu")), raw)
    if options.dtype != "auto":
        return options.dtype
    dtype = str(raw.get("dtype") or raw.get("torch_dtype")).removeprefix("torch.")
    return "bfloat16" if dtype == "bfloat16" else "float16" if dtype == "float16" else "float32"
