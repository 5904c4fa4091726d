"""Plan the memory use of a model before loading it.

The sizes follow from the shapes in the files' headers, the config and the options. If the model does
not fit, the error names the flags that would make it fit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from model.engine.config import BLOCK_SIZE, GIB, LoadOptions
from model.engine.kv_cache.choice import on_cuda
from model.engine.loading import memory_parts as parts
from model.engine.loading import remedies
from model.engine.loading.machine import Machine
from model.engine.loading.placement import Footprint, spread
from model.engine.loading.remedies import SHORTEST
from model.engine.loading.step_size import StepSize, has_room, step_sizes
from model.errors import CheckpointError
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.weights.files import Header
from model.phi3v.weights.quantization import unsupported_reason, work_bytes

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
# Not computed: library workspaces and fragmentation on a GPU, the program itself on a CPU.
LIBRARIES = {"cuda": GIB, "cpu": GIB // 2}
CPU_SHARE = 0.25  # of the available memory: most that the KV cache takes by default


@dataclass(frozen=True)
class MemoryPlan:
    """Memory use in bytes, and the sizes that follow from it.

    Attributes:
        weights: the decoder with its embeddings and head.
        vision: the vision tower's weights and working memory, the embedding cache, and on a GPU the
            embeddings that running sequences hold.
        headroom: working memory of a step and of libraries, on all GPUs.
        kv_cache: ``num_blocks`` blocks.
        available: usable memory; on several GPUs the fullest one bounds the others.
        max_model_len: longest sequence, in tokens.
        block_size, num_blocks: sizes of the KV cache.
        max_num_seqs: maximum number of sequences in a step.
        prefill_chunk: maximum number of prefill tokens in a step.
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
    max_num_seqs: int
    prefill_chunk: int
    layers: tuple[int, ...]

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.vision + self.headroom + self.kv_cache

    @property
    def tokens(self) -> int:
        """Positions of the KV cache."""
        return self.num_blocks * self.block_size

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of ``EngineConfig``."""
        names = ("max_model_len", "block_size", "num_blocks", "max_num_seqs", "prefill_chunk")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        table = {
            "weights": self.weights,
            "vision": self.vision,
            "headroom": self.headroom,
            f"KV cache of {self.tokens} tokens": self.kv_cache,
        }
        sum_of = " + ".join(f"{name} {size / GIB:.3g}" for name, size in table.items())
        return f"{sum_of} = {self.total / GIB:.3g} of {self.available / GIB:.3g} GiB"


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
        options: with a resolved dtype, not ``auto``; sizes that are None are chosen.
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
    planner = _Planner(headers, config, machines, merging)
    plan = planner.plan(options)
    if _fits(plan, options):
        return plan

    def window_with(changes: dict[str, Any]) -> int | None:
        return planner.longest_window(replace(options, **changes))

    left = plan.available - (plan.total - plan.kv_cache)
    advice = remedies.advice(options, plan.kv_cache, left, window_with)
    raise CheckpointError(f"{_complaint(plan, options, machines)}; {advice}")


class _Planner:
    """Plans for a checkpoint with different options.

    The arguments are those of ``plan_memory``.
    """

    def __init__(
        self,
        headers: Mapping[str, Header],
        config: Phi3VConfig,
        machines: Sequence[Machine],
        merging: int,
    ) -> None:
        self._headers = headers
        self._merging = merging
        self._config = config
        self._machines = machines
        self._device = machines[0].device
        self._weights: dict[tuple[str, str], parts.Weights] = {}

    def longest_window(self, options: LoadOptions) -> int | None:
        """The longest sequence with these options; None if the model does not fit with them."""
        if unsupported_reason(self._config, options.quantization) is not None:
            return None
        plan = self.plan(options)
        return plan.max_model_len if _fits(plan, options) else None

    def plan(self, options: LoadOptions) -> MemoryPlan:
        """The plan with the largest step that fits and has room; else that with the smallest step.

        It may exceed the memory: it always holds the shortest useful window.
        """
        smallest = None
        for size in step_sizes(options, self._machines):
            plan = smallest = self._plan(options, size)
            sizes = (size, plan.tokens, plan.max_model_len)
            if _fits(plan, options) and has_room(options, self._device, *sizes):
                return plan
        assert smallest is not None  # there is always a size to try
        return smallest

    def _plan(self, options: LoadOptions, size: StepSize) -> MemoryPlan:
        """The plan with a step size, and the longest window that its KV cache can hold."""
        longest = options.max_model_len or self._config.context_window
        least = _blocks(options.max_model_len or min(SHORTEST, longest))
        footprint = self._footprint(options)
        rooms = self._rooms(self._work(options, size, least * BLOCK_SIZE))
        counts = spread(footprint.num_layers, footprint.for_layers(rooms))

        def with_window(blocks: int) -> MemoryPlan:
            window = min(longest, blocks * BLOCK_SIZE)
            return self._with_window(options, size, footprint, counts, window, least)

        # On a GPU a longer window leaves less for the KV cache that must hold it.
        longer = range(least + 1, _blocks(longest) + 1)
        too_long = bisect_left(
            longer, True, key=lambda blocks: with_window(blocks).num_blocks < blocks
        )
        return with_window(least + too_long)

    def _with_window(
        self,
        options: LoadOptions,
        size: StepSize,
        footprint: Footprint,
        counts: Sequence[int],
        window: int,
        least: int,
    ) -> MemoryPlan:
        """The plan with a window of so many tokens, and ``least`` blocks or more."""
        work = self._work(options, size, window)
        left = footprint.left(self._rooms(work), counts)
        used = 1 + sum(count > 0 for count in counts[1:])
        weights = self._weights_of(options)
        vision = footprint.others - (weights.decoder - weights.layers)
        headroom = used * work
        available = vision + weights.decoder + headroom + left
        blocks = left // (footprint.block + footprint.held)
        if options.kv_cache_bytes is not None:
            blocks = options.kv_cache_bytes // footprint.block
        elif not on_cuda(self._device):  # waiting requests use the same memory
            budget = min(left - options.max_waiting_bytes, int(available * CPU_SHARE))
            blocks = budget // footprint.block
        blocks = min(max(blocks, least), _blocks(window) * size.max_num_seqs)
        return MemoryPlan(
            weights=weights.decoder,
            vision=vision + blocks * footprint.held,
            headroom=headroom,
            kv_cache=blocks * footprint.block,
            available=available,
            max_model_len=window,
            block_size=BLOCK_SIZE,
            num_blocks=blocks,
            max_num_seqs=size.max_num_seqs,
            prefill_chunk=size.prefill_chunk,
            layers=tuple(counts),
        )

    def _footprint(self, options: LoadOptions) -> Footprint:
        config, device, dtype = self._config, self._device, DTYPES[options.dtype]
        weights = self._weights_of(options)
        block = BLOCK_SIZE * parts.slot_bytes(config, dtype, device)
        tower_work = parts.tower_bytes(config, dtype, device)
        others = weights.decoder - weights.layers + weights.tower + tower_work
        return Footprint(
            num_layers=config.num_hidden_layers,
            layers=weights.layers,
            others=others + options.embedding_cache_bytes,
            block=block,
            held=BLOCK_SIZE * parts.embedding_bytes(config, dtype, device),
        )

    def _rooms(self, work: int) -> list[int]:
        return [machine.available - work for machine in self._machines]

    def _work(self, options: LoadOptions, size: StepSize, window: int) -> int:
        """Bytes of working memory on each device, with a window of so many tokens."""
        config, device, dtype = self._config, self._device, DTYPES[options.dtype]
        step = parts.step_bytes(config, size, dtype, device)
        work = LIBRARIES[device.type] + (step if on_cuda(device) else max(step, self._merging))
        if options.quantization != "none":
            work += work_bytes(config)
        return work + parts.window_bytes(config, size.max_num_seqs, window, dtype, device)

    def _weights_of(self, options: LoadOptions) -> parts.Weights:
        key = (options.dtype, options.quantization)
        if key not in self._weights:
            dtype = DTYPES[options.dtype]
            self._weights[key] = parts.Weights.of(self._headers, dtype, options.quantization)
        return self._weights[key]


def _blocks(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK_SIZE)


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
