"""Which kernels a computation runs on a GPU, and how long each takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch

# Parts of the names of the vendor's matrix products.
PRODUCTS = ("gemm", "gemv", "nvjet", "cutlass", "cublas", "splitk", "xmma")
LONGEST_NAME = 60


class Kernel(NamedTuple):
    """A kernel's share of a computation.

    Attributes:
        name: of the kernel, or of a group of kernels.
        seconds: of all its launches together.
        launches: how many.
    """

    name: str
    seconds: float
    launches: float


def profile(compute: Callable[[], object], times: int) -> list[Kernel]:
    """Kernels of one of several runs, the slowest first.

    Raises:
        RuntimeError: the profiler saw no kernel.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(times):
            compute()
        torch.cuda.synchronize()
    seconds: defaultdict[str, float] = defaultdict(float)
    launches: defaultdict[str, float] = defaultdict(float)
    for event in found.key_averages():
        if str(event.device_type).endswith("CUDA"):
            name = group_of(event.key)
            seconds[name] += event.self_device_time_total / 1e6 / times
            launches[name] += event.count / times
    if not seconds:
        raise RuntimeError("the profiler saw no kernel")
    kernels = [Kernel(name, seconds[name], launches[name]) for name in seconds]
    return sorted(kernels, key=lambda kernel: -kernel.seconds)


def group_of(kernel: str) -> str:
    """A short name; matrix products are one group."""
    name = kernel.removeprefix("void ").replace("(anonymous namespace)::", "")
    name = name.partition("<")[0].partition("(")[0].strip()  # without types and arguments
    if any(word in name.lower() for word in PRODUCTS):
        return "matrix products"
    return name.rpartition("::")[2][:LONGEST_NAME]
