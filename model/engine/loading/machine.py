"""What memory the machine has for a model: main memory within its control groups, or a GPU's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from model.engine.config import GIB

ROOT = Path("/")


@dataclass(frozen=True)
class Machine:
    """Where a model is to be loaded.

    Attributes:
        device: ``cpu`` or ``cuda``.
        available: bytes that the model may take.
        text: what they are, for people.
    """

    device: torch.device
    available: int
    text: str


def probe(device: torch.device, gpu_memory_utilization: float) -> Machine:
    """The machine as it is now.

    Args:
        device: where the model will be.
        gpu_memory_utilization: share of the GPU's free memory that may be taken.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        text = f"{gpu_memory_utilization:g} of {_gib(free)} free GPU memory, {_gib(total)} in all"
        return Machine(device, int(free * gpu_memory_utilization), text)
    free, allowed = psutil.virtual_memory().available, cgroup_left()
    if allowed is not None and allowed < free:
        return Machine(device, allowed, "left within the memory limit of the control group")
    return Machine(device, free, "free main memory")


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device itself computes in bfloat16; else it is emulated, slowly."""
    if device.type == "cuda":
        # As ``torch.cuda.is_bf16_supported`` has it, of the current device alone: since Ampere.
        return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= 8
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def cgroup_left(root: Path = ROOT) -> int | None:
    """Bytes that the control groups of this process still allow; None where nothing limits them.

    Both versions are read. Files that are cached do not count: they make room.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return None
    return min(
        (left for line in lines for left in _lefts(root / "sys/fs/cgroup", line)), default=None
    )


def _lefts(mount: Path, line: str) -> Iterator[int]:
    """What a process's group and each of the groups around it still allow."""
    _, controllers, path = line.split(":", 2)
    if not controllers:
        base, limit, usage, total = mount, "memory.max", "memory.current", ""
    elif "memory" in controllers.split(","):
        base, limit = mount / "memory", "memory.limit_in_bytes"
        usage, total = "memory.usage_in_bytes", "total_"
    else:
        return
    inside = base / path.lstrip("/")
    # In a container the path may be that of the host, where there is only the mount itself.
    for group in {base, *(g for g in (inside, *inside.parents) if g.is_relative_to(base))}:
        try:
            allowed, used = (group / limit).read_text().strip(), int((group / usage).read_text())
            stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if allowed != "max":
            cached = sum(int(stat.get(f"{total}{kind}_file", 0)) for kind in ("active", "inactive"))
            yield max(0, int(allowed) - used + cached)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
