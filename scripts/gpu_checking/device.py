"""The GPU and what torch knows of it."""

from __future__ import annotations

import platform
import shutil
import subprocess

import torch

from model.engine.loading.machine import has_bfloat16
from scripts.benchmarks.harness import machine


def why_no_gpu() -> str | None:
    """Why there is nothing to check, as a sentence; None where there is."""
    if torch.cuda.is_available():
        return None
    version = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{version} is a build for CPUs and finds no GPU"
    return (
        f"{version} finds no GPU: the driver is missing or older than CUDA {torch.version.cuda} wants, "
        "see nvidia-smi"
    )


def fast_dtype(device: torch.device) -> torch.dtype:
    """What one would serve in: bfloat16, or float16 on GPUs that compute no bfloat16."""
    return torch.float16 if device.type == "cuda" and not has_bfloat16(device) else torch.bfloat16


def name_of(dtype: torch.dtype) -> str:
    """As ``--dtype`` has it."""
    return str(dtype).removeprefix("torch.")


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> str:
    """The machine, as a list in Markdown."""
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
        facts["GPU"] = "none was checked: the CPU stood in for it"
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("\n")[0] or "unknown"
