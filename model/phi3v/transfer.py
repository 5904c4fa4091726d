"""From main memory to the device that computes."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of main memory on a device; the caller does not wait until a GPU has it.

    GPUs fetch by themselves only from pinned memory, which torch keeps until they are done.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
