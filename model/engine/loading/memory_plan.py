"""Plan the memory use of a model before loading it.

The sizes follow from the shapes in the files' headers, the config and the options. If the model does
not fit, the error names the flags that would make it fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from model.engine.config import GIB, LoadOptions
from model.engine.kv_cache.choice import block_size, on_cuda, storage_dtype
from model.engine.loading.machine import Machine
from model.engine.loading.placement import spread
from model.errors import CheckpointError
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.vision import CROPS_PER_PASS_CPU, CROPS_PER_PASS_GPU
from model.phi3v.weights.files import Header
from model.phi3v.weights.quantization import LAYERS, quantized_bytes, unsupported_reason, work_bytes

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
VISION = ".vision_embed_tokens."
LAYER = "model.layers."
# Not computed below: CUDA graphs and library workspaces on a GPU, the program itself on a CPU.
LIBRARIES = {"cuda": GIB, "cpu": GIB // 2}
CPU_SHARE = 0.25  # of the available memory: most that the KV cache takes by default
SHORTEST = 512  # tokens: smallest default of --max-model-len


@dataclass(frozen=True)
class MemoryPlan:
    """Memory use in bytes, and the sizes that follow from it.

    Attributes:
        weights: the decoder with its embeddings and head.
        vision: the vision tower's weights and working memory, and the embedding cache.
        headroom: working memory of a step and of libraries, on all GPUs.
        kv_cache: ``num_blocks`` blocks.
        available: usable memory; on several GPUs the fullest one bounds the others.
        max_model_len: longest sequence, in tokens.
        block_size, num_blocks: sizes of the KV cache.
        layers: decoder layers on each GPU.
    """

    weights: int
    vision: int
    headroom: int
    kv_cache: int
    available: int
    max_model_len: int
    block_size: int
    num_blocks: int
    layers: tuple[int, ...]

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.vision + self.headroom + self.kv_cache

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "vision": self.vision,
            "headroom": self.headroom,
            f"KV cache of {self.num_blocks * self.block_size} tokens": self.kv_cache,
        }
        table = " + ".join(f"{name} {size / GIB:.3g}" for name, size in parts.items())
        return f"{table} = {self.total / GIB:.3g} of {self.available / GIB:.3g} GiB"


def plan_memory(
    headers: Mapping[str, Header],
    config: Phi3VConfig,
    options: LoadOptions,
    machines: Sequence[Machine],
    merging: int = 0,
) -> MemoryPlan:
    """Plan the memory use of a model.

    Args:
        headers: of all tensors of the checkpoint.
        config: of the checkpoint.
        options: with a resolved dtype, not ``auto``.
        machines: one device, or the GPUs that the layers are spread over.
        merging: most bytes that merging an adapter takes in main memory, before the first step.

    Raises:
        CheckpointError: the model does not fit, or ``max_model_len`` exceeds its context window.
    """
    if (options.max_model_len or 0) > config.context_window:
        raise CheckpointError(
            f"--max-model-len {options.max_model_len} exceeds the checkpoint's context window of "
            f"{config.context_window} tokens"
        )
    reason = unsupported_reason(config, options.quantization)
    if reason is not None:
        raise CheckpointError(
            f"--quantization {options.quantization} does not support this model: {reason}"
        )

    def plan_with(changes: dict[str, Any]) -> MemoryPlan | None:
        changed = replace(options, **changes)
        if unsupported_reason(config, changed.quantization) is not None:
            return None
        plan = _plan(headers, config, changed, machines, merging)
        return plan if _fits(plan, changed) else None

    plan = _plan(headers, config, options, machines, merging)
    if _fits(plan, options):
        return plan
    changes = list(_changes(options, plan))
    remedies = [change for change in changes if plan_with(change)]
    if not remedies:  # no single flag suffices; try all together
        together = {name: value for change in changes for name, value in change.items()}
        together |= {"max_model_len": None, "kv_cache_memory": None}
        smallest = plan_with(together)
        if smallest is not None:
            together["max_model_len"] = smallest.max_model_len
            remedies = [{name: value for name, value in together.items() if value is not None}]
    raise CheckpointError(f"{_complaint(plan, options, machines)}; {_advice(remedies)}")


def _plan(
    headers: Mapping[str, Header],
    config: Phi3VConfig,
    options: LoadOptions,
    machines: Sequence[Machine],
    merging: int,
) -> MemoryPlan:
    """The plan, which may exceed the memory; it always holds the shortest useful window."""
    dtype, device = DTYPES[options.dtype], machines[0].device
    weights = layers = tower = 0
    for name, header in headers.items():
        size = math.prod(header.shape) * dtype.itemsize
        if VISION in name:
            tower += size
            continue
        if (
            options.quantization != "none"
            and LAYERS.search(name.removesuffix(".weight"))
            and len(header.shape) == 2  # other shapes are an error, which loading reports
        ):
            size = quantized_bytes(header.shape, options.quantization)
        weights += size
        layers += size if name.startswith(LAYER) else 0
    slot, size = _slot_bytes(config, dtype, device), block_size(device)
    vision = tower + _tower_work(config, device) + options.embedding_cache_bytes
    step = _step_work(config, options)
    work = LIBRARIES[device.type] + (max(step, merging) if device.type == "cpu" else step)
    if options.quantization != "none":
        work += work_bytes(config)
    scratch = slot * size if on_cuda(device) else 0  # the scratch block, see kv_cache.cuda
    counts, left = _room(config, machines, work, vision + weights - layers, layers + scratch)
    used = 1 + sum(count > 0 for count in counts[1:])
    headroom = used * work + scratch
    available = vision + weights + headroom + left
    shortest = -(-(options.max_model_len or min(SHORTEST, config.context_window)) // size)
    budget = left
    if options.kv_cache_bytes is not None:
        budget = options.kv_cache_bytes
    elif not on_cuda(device):  # waiting requests use the same memory
        budget = min(budget - options.max_waiting_bytes, int(available * CPU_SHARE))
    blocks = max(shortest, budget // (slot * size))
    window = options.max_model_len or min(config.context_window, blocks * size)
    blocks = min(blocks, -(-window // size) * options.max_num_seqs)
    return MemoryPlan(
        weights=weights,
        vision=vision,
        headroom=headroom,
        kv_cache=blocks * size * slot,
        available=available,
        max_model_len=window,
        block_size=size,
        num_blocks=blocks,
        layers=tuple(counts),
    )


def _room(
    config: Phi3VConfig, machines: Sequence[Machine], work: int, others: int, layers: int
) -> tuple[list[int], int]:
    """Layers on each device, and the bytes left for the KV cache in total.

    Args:
        config: of the checkpoint.
        machines: the devices.
        work: bytes used on each device besides weights.
        others: bytes on the first device of everything but layers.
        layers: bytes of all layers without keys and values.
    """
    num_layers = config.num_hidden_layers
    rooms = [machine.available - work for machine in machines]
    rooms[0] -= others
    counts = spread(num_layers, rooms)
    # The fullest device bounds the number of positions in all layers.
    lefts = [
        room * num_layers // count - layers
        for room, count in zip(rooms, counts, strict=True)
        if count
    ]
    if rooms[0] < 0:  # the first device gets no layers, and is still too small
        lefts.append(rooms[0])
    return counts, min(lefts)


def _fits(plan: MemoryPlan, options: LoadOptions) -> bool:
    asked = options.kv_cache_memory
    return plan.total <= plan.available and (asked is None or plan.kv_cache <= asked * GIB)


def _complaint(plan: MemoryPlan, options: LoadOptions, machines: Sequence[Machine]) -> str:
    if plan.total <= plan.available:
        return (
            f"a sequence of {plan.max_model_len} tokens needs {plan.kv_cache / GIB:.3g} GiB of KV "
            f"cache, but --kv-cache-memory allows {options.kv_cache_memory:g} GiB"
        )
    return f"the model does not fit into memory: {plan} ({texts(machines)})"


def texts(machines: Sequence[Machine]) -> str:
    """Describe the available memory."""
    return "; ".join(machine.text for machine in machines)


def _changes(options: LoadOptions, plan: MemoryPlan) -> Iterator[dict[str, Any]]:
    """Changes of options that might make the model fit, the least intrusive first."""
    left = plan.available - (plan.total - plan.kv_cache)
    asked = options.kv_cache_bytes
    if options.max_model_len is not None:
        room = left if asked is None else min(left, asked)
        blocks = room * plan.num_blocks // plan.kv_cache
        window = blocks * plan.block_size
        if window >= SHORTEST or 0 < window < options.max_model_len < SHORTEST:
            yield {"max_model_len": window}
    if asked is not None:
        wanted = plan.kv_cache if plan.kv_cache > asked else left
        rounded = math.ceil if plan.kv_cache > asked else math.floor
        yield {"kv_cache_memory": rounded(100 * wanted / GIB) / 100}
    for name in ("prefill_chunk", "max_num_seqs"):
        default = getattr(LoadOptions, name)
        if getattr(options, name) > default:
            yield {name: default}
    if options.dtype == "float32":
        yield {"dtype": "bfloat16"}
    if options.quantization == "none":
        yield {"quantization": "int8"}
    if options.quantization != "int4":
        yield {"quantization": "int4"}
    if options.embedding_cache_memory > 0:
        yield {"embedding_cache_memory": 0}


def _advice(remedies: list[dict[str, Any]]) -> str:
    if not remedies:
        return "no flag would make it fit on this machine"
    flags = [
        " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changes.items())
        for changes in remedies
    ]
    return f"it would fit with {' or '.join(flags)}"


def _slot_bytes(config: Phi3VConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of one position's keys and values in all layers."""
    heads = config.num_key_value_heads or config.num_attention_heads
    head_dim = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_dim * storage_dtype(dtype, device).itemsize


def _step_work(config: Phi3VConfig, options: LoadOptions) -> int:
    """Bytes of a step's hidden states, projections and logits, in float32 at most."""
    heads = config.num_attention_heads + 2 * (config.num_key_value_heads or 0)
    projected = heads * config.hidden_size // config.num_attention_heads
    row = 4 * config.hidden_size + 2 * projected + 3 * config.intermediate_size
    tokens = options.prefill_chunk + options.max_num_seqs
    copies = 4  # of logits: raw, processed, sorted, and their order
    return 4 * (tokens * row + copies * options.max_num_seqs * config.vocab_size)


def _tower_work(config: Phi3VConfig, device: torch.device) -> int:
    """Bytes of the vision tower's activations: float32 on CPUs, 16 bits on GPUs."""
    sizes: Any = config.vision_config
    patches = (sizes.image_size // sizes.patch_size) ** 2 + 1
    row = 6 * sizes.hidden_size + 2 * sizes.intermediate_size
    crops, item = (CROPS_PER_PASS_GPU, 2) if on_cuda(device) else (CROPS_PER_PASS_CPU, 4)
    return crops * patches * row * item
