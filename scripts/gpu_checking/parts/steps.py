"""How long decode steps take, which kernels take the time, and what the device's limits allow.

A step reads all weights once, and the keys and values of all its sequences. So it takes at least as long
as reading these bytes, at the bandwidth that a copy reaches, or as its products take at the rate that a
large matrix product reaches.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import dataclass

import torch

from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.gpu.launch import Launch, intercepted
from model.phi3v.network import Network, make_network
from scripts.benchmarks.harness.cards import ModelCosts, card_like, predict
from scripts.benchmarks.harness.report import Report
from scripts.benchmarks.suites.gpu_plan import LENGTHS, count_step
from scripts.gpu_checking.device import copy_bandwidth, name_of, product_rate, synchronize
from scripts.gpu_checking.engines import (
    Runners,
    make_engine,
    next_chunks,
    prefill_chunk,
    processor_for,
    random_model,
    start_decoding,
    step,
    tokens_that_fit,
)
from scripts.gpu_checking.options import Options
from scripts.gpu_checking.profiling import profile

SMALL_LENGTHS = {1: 64, 4: 64}  # on a CPU
NEW_TOKENS = 192  # room for the answers of a load, in tokens; most are for others' prefill
WARM_UP, STEPS, PROFILED = 4, 32, 8
SHOWN = 8  # kernels


@dataclass(frozen=True)
class Limits:
    """What the device can do, as measured.

    Attributes:
        bandwidth: bytes per second.
        products: floating-point operations per second.
    """

    bandwidth: float
    products: float

    def seconds(self, costs: ModelCosts, item: float, rows: int, length: int) -> float:
        """The least that a decode step takes.

        Args:
            costs: of the model.
            item: bytes of a number, in units of two bytes.
            rows: sequences.
            length: tokens that each holds.
        """
        read = item * (costs.weight_bytes + rows * length * costs.kv_bytes)
        flops = rows * (costs.token_flops + costs.head_flops + length * costs.attention_flops)
        return max(read / self.bandwidth, flops / self.products)


def check(options: Options) -> Report:
    """Measure steps of several sizes on random weights, and profile them."""
    device, dtype = options.device, options.dtype
    limits = Limits(copy_bandwidth(device), product_rate(device, dtype))
    network = make_network(random_model(options.preset, device, dtype))
    costs, item = ModelCosts.of(network.config), dtype.itemsize / 2
    report = Report(
        "steps",
        f"decode steps of the size {options.preset_name} in {name_of(dtype)}; a copy moves "
        f"{limits.bandwidth / 1e9:.0f} GB/s, a matrix product makes {limits.products / 1e12:.3g} TFLOP/s",
        [
            "rows",
            "tokens held",
            "ms",
            "tokens/s",
            "limit, ms",
            "share of the limit",
            "predicted, ms",
        ],
    )
    loads = dict(_fitting(network, LENGTHS if options.on_gpu else SMALL_LENGTHS))
    runners, started = Runners(), time.perf_counter()
    engine = _engine(network, options, loads, runners)
    synchronize(device)
    graphs = runners.fast.graph_rows
    made = f"graphs for up to {graphs[-1]} rows" if graphs else "no graphs"
    report.notes.append(f"making the cache and {made} took {time.perf_counter() - started:.1f} s")
    for rows, length in loads.items():
        seconds = _measure(engine, rows, length)
        least = limits.seconds(costs, item, rows, length)
        predicted = _predicted(network, device, rows, length)
        shown = "-" if predicted is None else 1000 * predicted
        share = f"{least / seconds:.0%}"
        report.rows.append(
            [rows, length, 1000 * seconds, rows / seconds, 1000 * least, share, shown]
        )
        if options.on_gpu:
            _break_down(engine, runners, costs, report)
        for number in range(rows):
            engine.abort(number)
    return report


def _fitting(network: Network, lengths: dict[int, int]) -> list[tuple[int, int]]:
    """Rows and lengths, with fewer rows where the memory is too small for all."""
    most = tokens_that_fit(network)
    return [
        (max(1, min(rows, most // (length + NEW_TOKENS))), length)
        for rows, length in lengths.items()
    ]


def _engine(network: Network, options: Options, loads: dict[int, int], runners: Runners) -> Engine:
    window = max(loads.values()) + NEW_TOKENS
    tokens = max(rows * (length + NEW_TOKENS) for rows, length in loads.items())
    sizes = EngineConfig(
        window,
        num_blocks=max(tokens, window) // 16 + max(loads) + 1,
        max_num_seqs=max(loads),
        prefill_chunk=prefill_chunk(options.device),
    )
    processor = processor_for(options.preset)
    return make_engine(network, processor, sizes, runners.make, fixed_chunks=True)


def _measure(engine: Engine, rows: int, length: int) -> float:
    """Median seconds of a step, with all that the host does."""
    start_decoding(engine, [length] * rows, NEW_TOKENS, seed=rows)
    for _ in range(WARM_UP):
        step(engine)
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step(engine)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _predicted(network: Network, device: torch.device, rows: int, length: int) -> float | None:
    """What ``scripts/bench gpu-plan`` predicts; None for cards that it doesn't know."""
    if device.type != "cuda":
        return None
    gpu = torch.cuda.get_device_properties(device)
    card = card_like(gpu.name, gpu.total_memory)
    if card is None:
        return None
    costs, counted = ModelCosts.of(network.config), count_step(network.config, rows, length)
    flops = rows * (costs.token_flops + costs.head_flops + length * costs.attention_flops)
    return predict(card, counted.launches.total(), counted.bytes, flops, graph=True)


def _break_down(engine: Engine, runners: Runners, costs: ModelCosts, report: Report) -> None:
    """Add the time of kernels in a step, and how fast those move bytes whose bytes are known."""
    rows = len(engine.scheduler.running)
    try:
        kernels = profile(lambda: step(engine), PROFILED)
    except Exception as error:  # some machines don't allow it
        report.notes.append(f"{rows} rows: no profile: {type(error).__name__}: {error}")
        return
    traffic = step_traffic(engine, runners) if engine.network.decoder.fuses_attention else {}
    traffic["matrix products"] = costs.weight_bytes * engine.network.dtype.itemsize / 2
    total = sum(kernel.seconds for kernel in kernels)
    parts = []
    for kernel in kernels[:SHOWN]:
        rate = ""
        if kernel.name in traffic and kernel.seconds:
            rate = f", {traffic[kernel.name] / kernel.seconds / 1e9:.0f} GB/s"
        parts.append(
            f"{kernel.name} {1000 * kernel.seconds:.3g} ms ({kernel.seconds / total:.0%}, "
            f"{kernel.launches:.0f} launches{rate})"
        )
    launches = sum(kernel.launches for kernel in kernels)
    report.notes.append(
        f"{rows} rows: kernels take {1000 * total:.3g} ms in {launches:.0f} launches: "
        + "; ".join(parts)
    )
    report.data[f"kernels at {rows} rows"] = [kernel._asdict() for kernel in kernels]


@torch.inference_mode()
def step_traffic(engine: Engine, runners: Runners) -> dict[str, float]:
    """Bytes that our kernels read and write in the next step, by kernel."""
    launches: list[Launch] = []

    def observe(launch: Launch) -> None:
        launch.run()
        launches.append(launch)

    with intercepted(observe):
        runners.plain.run(next_chunks(engine))
    bytes_by_kernel: Counter[str] = Counter()
    for launch in launches:
        traffic = launch.traffic()
        bytes_by_kernel[launch.kernel] += traffic.read + traffic.written
    return dict(bytes_by_kernel)
