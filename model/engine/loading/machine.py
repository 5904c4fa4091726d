"""Memory available for a model: main memory within cgroup limits, or GPU memory."""

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
    """A device and its memory.

    Attributes:
        device: ``cpu`` or ``cuda``.
        available: bytes that the model may use.
        text: human-readable description of that memory.
        total: bytes that the device has; None if that is not known.
    """

    device: torch.device
    available: int
    text: str
    total: int | None = None

    @property
    def memory(self) -> int:
        """Bytes that the device has, or at least those that the model may use."""
        return self.available if self.total is None else self.total


def probe(device: torch.device, gpu_memory_utilization: float) -> Machine:
    """Measure the memory available now.

    Args:
        device: where to load the model.
        gpu_memory_utilization: fraction of the GPU's free memory that may be used.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        text = f"{gpu_memory_utilization:g} of {_gib(free)} free GPU memory, {_gib(total)} in total"
        return Machine(device, int(free * gpu_memory_utilization), text, total)
    free, allowed = psutil.virtual_memory().available, cgroup_left()
    if allowed is not None and allowed < free:
        return Machine(device, allowed, "left within the cgroup's memory limit")
    return Machine(device, free, "free main memory")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device supports bfloat16 natively; emulation is slow."""
    if device.type == "cuda":
        # Since Ampere; ``torch.cuda.is_bf16_supported`` checks only the current device.
        return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= 8
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def cgroup_left(root: Path = ROOT) -> int | None:
    """Bytes left within this process's cgroup limits (v1 and v2); None if unlimited.

    Cached files do not count as used, because the kernel can evict them.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return min(
        (left for line in lines for left in _lefts(root / "sys/fs/cgroup", line)), default=None
    )


def _lefts(mount: Path, line: str) -> Iterator[int]:
    """Bytes left in the process's cgroup and in each of its ancestors."""
    _, controllers, path = line.split(":", 2)
    if not controllers:
        base, limit, usage, total = mount, "memory.max", "memory.current", ""
    elif "memory" in controllers.split(","):
        base, limit = mount / "memory", "memory.limit_in_bytes"
        usage, total = "memory.usage_in_bytes", "total_"
    else:
        return
    inside = base / path.lstrip("/")
    # In a container the path may be the host's, and then only the mount itself exists.
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
