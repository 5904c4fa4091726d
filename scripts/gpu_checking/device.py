"""The device: what it is, and how fast it copies and multiplies."""

from __future__ import annotations

import platform
import shutil
import subprocess

import torch

from model.engine.loading.machine import has_bfloat16
from scripts.benchmarks.harness import machine
from scripts.benchmarks.harness.machine import fastest

COPIED = {"cuda": 1 << 30, "cpu": 1 << 28}  # bytes, more than any cache holds
SIDE = {"cuda": 8192, "cpu": 1024}  # of square matrices


def why_no_gpu() -> str | None:
    """Why torch finds no GPU; None if it finds one."""
    if torch.cuda.is_available():
        return None
    version = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{version} is a CPU build and finds no GPU"
    return (
        f"{version} finds no GPU: the driver is missing or too old for CUDA {torch.version.cuda}; "
        "run nvidia-smi"
    )


def fast_dtype(device: torch.device) -> torch.dtype:
    """The fastest dtype: bfloat16, or float16 on GPUs without bfloat16."""
    return torch.float16 if device.type == "cuda" and not has_bfloat16(device) else torch.bfloat16


def name_of(dtype: torch.dtype) -> str:
    """The dtype's name for ``--dtype``."""
    return str(dtype).removeprefix("torch.")


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory that are free; 0 for the CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes, in total."""
    size = COPIED[device.type]
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))

    def copy() -> None:
        target.copy_(source)
        synchronize(device)

    return 2 * size / fastest(copy, repeats=10)


@torch.inference_mode()
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product."""
    side = SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        torch.matmul(left, right)
        synchronize(device)

    return 2 * side**3 / fastest(multiply, repeats=5)


def describe(device: torch.device) -> dict[str, str]:
    """Facts about the machine."""
    facts = {
        "CPU": machine.describe(),
        "system": f"{platform.platform()}, Python {platform.python_version()}",
    }
    if device.type != "cuda":
        return {**facts, "GPU": "none (the CPU was checked instead)"}
    gpu = torch.cuda.get_device_properties(device)
    count = torch.cuda.device_count()
    facts["GPU"] = (
        f"{gpu.name}{f' (the first of {count})' if count > 1 else ''}, {gpu.total_memory / 2**30:.0f} GiB ({free_memory(device) / 2**30:.0f} free), "
        f"compute capability {gpu.major}.{gpu.minor}, {gpu.multi_processor_count} multiprocessors"
    )
    facts["CUDA"] = f"{torch.version.cuda}, driver {_driver()}"
    return facts


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("\n")[0] or "unknown"
