"""Controls when memory is returned to the system."""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from torch import Tensor, nn

MADV_DONTNEED = 4  # <sys/mman.h> on Linux
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's <malloc.h>
LARGEST_KEPT = 32 << 20  # bytes per allocation; glibc's maximum
MOST_KEPT = 256 << 20  # bytes in total


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory instead of returning it to the system.

    A step's tensors are allocated and freed at every step, and page faults in new memory take longer
    than the computation.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def release_weight(linear: nn.Linear) -> None:
    """Return the memory of a layer's weight, which must not be used again, to the system."""
    weight = linear.weight.data
    linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    release(weight)


def release(weight: Tensor) -> None:
    """Return the memory of a tensor, which must not be used again, to the system.

    A memory-mapped weight counts as used until its whole file is unmapped, which small tensors that
    are still in use prevent. Releasing weights halves the server's memory.
    """
    if sys.platform != "linux":
        return
    start = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED
        )
