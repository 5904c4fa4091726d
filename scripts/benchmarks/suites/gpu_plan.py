"""Launches and bytes of a decode step on a GPU, counted, and what cards would need for them, predicted.

The step's own code runs on tensors without data, with the official sizes in bfloat16: what a CUDA graph
captures, and the sampler. Each kernel and each of torch's operators that is more than a view counts as a
launch. Milliseconds are predictions from data sheets, not measurements; see ``harness.cards``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # documented under this name alone

from model.demo.random_checkpoint import PRESETS, config_for
from model.engine.execution.cuda_graphs import DecodeGraphs, Size
from model.engine.kv_cache.gpu import GpuKVCache
from model.engine.kv_cache.prefill import sdpa
from model.engine.request import SamplingParams
from model.engine.sampling.drawing import Row, draw_on_gpu
from model.gpu.launch import Launch, intercepted
from model.gpu.paged_decode import paged_traffic
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.decoder_gpu import GpuDecoder
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.rope import LongRope
from scripts.benchmarks.harness.cards import CARDS, ModelCosts, predict, roof
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.report import Figure, Panel, Report

META = torch.device("meta")
LENGTHS = {1: 2400, 16: 2400, 64: 2400, 256: 500}  # rows of a step, and tokens that each holds
NAMES = ("L4", "A100-80", "H100", "H200")
MOST_LAUNCHES = 300  # at 32 layers
MOST_BYTES = 1.1  # times weights, and keys and values read
ALLOCATIONS = ("empty", "lift")  # in names of operators that launch nothing
COPIED = ("embedding", "index", "index_select")  # operators that read only the rows they return


@dataclass
class Step:
    """What a step launches, reads and writes."""

    rows: int
    length: int
    launches: Counter[str] = field(default_factory=Counter)
    bytes: float = 0

    def add(self, name: str, num_bytes: float) -> None:
        """Count a launch."""
        self.launches[name] += 1
        self.bytes += num_bytes


class _Operators(TorchDispatchMode):
    """Counts torch's operators."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self._step = step

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs, outputs = _tensors([*args, *(kwargs or {}).values()]), _tensors([result])
        if any(word in name for word in ALLOCATIONS) or _is_view(func, inputs, outputs):
            return result
        if any(x.device != META for x in inputs):  # copied by the card's copy engine
            return result
        written = {id(tensor) for tensor in outputs}
        read = outputs if name in COPIED else [x for x in inputs if id(x) not in written]
        self._step.add(name, sum(tensor.nbytes for tensor in [*read, *outputs]))
        return result


def _is_view(func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether an operator only returns memory of its inputs, as ``to`` does if nothing changes."""
    if any(r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns):
        return False
    storages = {tensor.untyped_storage()._cdata for tensor in inputs}
    return all(tensor.untyped_storage()._cdata in storages for tensor in outputs)


def count_step(config: Phi3VConfig, rows: int, length: int) -> Step:
    """Run a decode step of ``rows`` sequences that hold ``length`` tokens each."""
    with META:
        model = Phi3VForCausalLM(config)
    model.bfloat16()
    decoder, rope = GpuDecoder(model), LongRope(config, META)
    blocks = -(-length // 16)
    cache = GpuKVCache(
        config, rows * blocks, torch.bfloat16, META, rows=rows, max_blocks=blocks, prefill=sdpa
    )
    step, queries = Step(rows, length), cache.new_output(rows)

    def counted(launch: Launch) -> None:
        if (
            launch.kernel == "paged_decode_kernel"
        ):  # its bytes depend on lengths, which have no data
            traffic = paged_traffic(queries, cache.blocks[0], [length] * rows, [1] * rows)
        else:
            traffic = launch.traffic()
        step.add(launch.kernel, traffic.read + traffic.written)

    def capture(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        with intercepted(counted), _Operators(step):
            logits_SV = compute()
            draw_on_gpu(logits_SV, [Row(SamplingParams(), 0, 0)] * rows)
        return lambda: logits_SV

    with torch.inference_mode():
        DecodeGraphs(decoder, cache, rope, [Size(rows, 1)], capture)
    return step


def run(options: Options) -> Report:
    """See the module."""
    preset = "tiny" if options.smoke else "full"
    config = Phi3VConfig(**config_for(PRESETS[preset], preset))
    costs = ModelCosts.of(config)
    steps = [count_step(config, rows, length) for rows, length in LENGTHS.items()]
    report = Report(
        "gpu-plan",
        f"a decode step of {config.num_hidden_layers} layers in bfloat16; milliseconds are predicted",
        ["rows", "tokens held", "launches", "MB", "of weights, keys and values"]
        + [f"{name}, ms (roof)" for name in NAMES],
    )
    predicted: dict[str, dict[int, dict[str, float]]] = {name: {} for name in NAMES}
    for step in steps:
        least = costs.weight_bytes + step.rows * step.length * costs.kv_bytes
        flops = step.rows * (
            costs.token_flops + costs.head_flops + step.length * costs.attention_flops
        )
        launches = step.launches.total()
        for name in NAMES:
            card = CARDS[name]
            seconds = predict(card, launches, step.bytes, flops, graph=True)
            limits = {"ms": 1000 * seconds, "roof_ms": 1000 * roof(card, least, flops)}
            predicted[name][step.rows] = limits
        report.rows.append(
            [step.rows, step.length, launches, step.bytes / 1e6, step.bytes / least]
            + ["{ms:.3g} ({roof_ms:.3g})".format(**predicted[name][step.rows]) for name in NAMES]
        )
        for what, value, most in (
            ("launches", launches, MOST_LAUNCHES),
            ("bytes / (weights, keys and values)", step.bytes / least, MOST_BYTES),
        ):
            report.figures.append(Figure(f"{step.rows} rows: {what}", value, "at most", most))
    (first, *_) = steps
    report.notes = [f"{count} x {name}" for name, count in first.launches.most_common()]
    report.panels = [
        Panel(
            "A decode step, predicted",
            "rows",
            "ms",
            {
                name: {rows: [limits["ms"]] for rows, limits in by_rows.items()}
                for name, by_rows in predicted.items()
            },
        )
    ]
    report.data = {
        "launches_per_step": max(step.launches.total() for step in steps),
        "bytes_ratio": max(
            step.bytes / (costs.weight_bytes + step.rows * step.length * costs.kv_bytes)
            for step in steps
        ),
        "predicted": predicted,
    }
    return report


def _tensors(values: Any) -> list[Tensor]:
    """All tensors in arguments or results."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found
