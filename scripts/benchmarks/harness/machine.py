"""The machine's limits, measured with torch, for comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

MATRIX_SIZES = (1024, 2048, 4096)


def describe() -> str:
    """The processor, torch's threads and its version."""
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - reads only one line
            name = next(
                line.split(":")[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        name = "CPU"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def fastest(call: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest of several calls, after a warm-up call."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


@torch.inference_mode()
def matrix_rate(dtype: torch.dtype) -> float:
    """Highest FLOP/s of a few large matrix products."""
    rates = []
    for size in MATRIX_SIZES:
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        rates.append(2 * size**3 / fastest(partial(torch.matmul, a, b)))
    return max(rates)


class WeightReader:
    """Reads weights like a decode step at batch size 1: one matrix-vector product for each.

    Args:
        shapes: outputs and inputs of each weight; the values are random.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], dtype: torch.dtype) -> None:
        self._plain = [torch.empty(shape, dtype=dtype).uniform_(-1, 1) for shape in shapes]
        self._packed = [torch.ops.mkldnn._reorder_linear_weight(weight) for weight in self._plain]
        self._inputs = {columns: torch.randn(1, columns).to(dtype) for _, columns in shapes}
        self.num_bytes = sum(weight.nbytes for weight in self._plain)

    @torch.inference_mode()
    def seconds(self) -> dict[str, float]:
        """Seconds of one pass over all weights, by method."""
        return {
            "nn.functional.linear": fastest(lambda: self._over(self._plain, linear)),
            "oneDNN, packed": fastest(lambda: self._over(self._packed, _packed_linear)),
        }

    @torch.inference_mode()
    def bandwidth(self) -> float:
        """Bytes per second when summing the weights as integers."""
        words = [weight.view(torch.int64) for weight in self._plain]
        return self.num_bytes / fastest(lambda: [word.sum() for word in words])

    def _over(self, weights: list[Tensor], product: Callable[[Tensor, Tensor], Tensor]) -> None:
        for plain, weight in zip(self._plain, weights, strict=True):
            product(self._inputs[plain.shape[1]], weight)


def _packed_linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
