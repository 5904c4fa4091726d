"""Tells GPUs that torch can use from those that it cannot, so that nobody serves on the CPU unawares."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from model.phi3v.checkpoint import first_line

ROOT = Path("/")
# With these values a GPU is hidden on purpose.
HIDDEN = {
    "CUDA_VISIBLE_DEVICES": ("", "-1"),
    "HIP_VISIBLE_DEVICES": ("", "-1"),
    "NVIDIA_VISIBLE_DEVICES": ("", "none", "void"),  # as container runtimes set it
}


def usable_gpus() -> int:
    """How many GPUs torch finds.

    ``torch.cuda.device_count`` asks the driver's library for management, which also counts GPUs whose
    driver is too old for torch.
    """
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def failure(device: torch.device) -> str | None:
    """Why a GPU that torch finds computes nothing, and what to do; None if it does."""
    try:
        torch.ones(1, device=device).add_(1).item()
    except torch.OutOfMemoryError:  # others use it; the memory plan says how much is free
        return None
    except Exception as error:  # torch raises several kinds
        reason = first_line(error).rstrip(".")
        return f"torch {torch.__version__} cannot use {device}: {reason}; {_remedy()}"
    return None


def unusable_gpu(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> str | None:
    """Why torch cannot use the machine's GPU, and what to do; None if the machine has none.

    Call it only where torch finds no device.

    Args:
        root: the file system.
        environment: variables, of which some hide GPUs on purpose.
    """
    if any(environment.get(name) in values for name, values in HIDDEN.items()):
        return None
    file = _device_file(root)
    if file is None:
        return None
    return (
        f"this machine has a GPU ({file}) that torch {torch.__version__} cannot use: {why_none()}"
    )


def why_none() -> str:
    """Torch's reason for finding no device, and the remedy."""
    try:
        torch.cuda.init()
        reason = "it finds no device"
    except Exception as error:  # torch raises several kinds
        reason = first_line(error).rstrip(".")
    return f"{reason}; {_remedy()}"


def _remedy() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "install a build of torch for this GPU"
    wanted = f"CUDA {torch.version.cuda}" if torch.version.hip is None else "ROCm"
    return (
        f"install a driver that supports {wanted}, or a build of torch for this GPU and its driver"
    )


def _device_file(root: Path) -> Path | None:
    """The device file of a GPU, of NVIDIA's or AMD's."""
    devices = root / "dev"
    found = sorted(devices.glob("nvidia[0-9]*"))
    # WSL has this file for GPUs of all makers; NVIDIA's driver for Windows adds a library.
    if (root / "usr/lib/wsl/lib/libcuda.so.1").exists():
        found += devices.glob("dxg")
    found += devices.glob("kfd")
    return Path("/") / found[0].relative_to(root) if found else None
