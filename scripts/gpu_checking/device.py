"""The GPU, its driver and torch's support for it."""

from __future__ import annotations

import platform
import shutil
import subprocess

import torch

from model.engine.loading.machine import has_bfloat16
from scripts.benchmarks.harness import machine


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


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> str:
    """Describe the machine as a Markdown list."""
    facts = {
        "CPU": machine.describe(),
        "system": f"{platform.platform()}, Python {platform.python_version()}",
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts["GPU"] = (
            f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability "
            f"{gpu.major}.{gpu.minor}"
        )
        facts["CUDA"] = f"{torch.version.cuda}, driver {_driver()}"
    else:
        facts["GPU"] = "none (the CPU was checked instead)"
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("\n")[0] or "unknown"
