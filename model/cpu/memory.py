"""How memory is given back."""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from torch import nn

MADV_DONTNEED = 4  # <sys/mman.h> on Linux
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's <malloc.h>
LARGEST_KEPT = 32 << 20  # bytes of one allocation, the most that glibc takes
MOST_KEPT = 256 << 20  # bytes in all


def keep_freed_memory() -> None:
    """Have freed memory used again, where glibc would give it back to the system.

    The tensors of a step are allocated and freed at every step. The system hands memory out page by
    page, which takes longer than what is computed in it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def release_weight(linear: nn.Linear) -> None:
    """Give back the memory behind the weight of a layer that nobody will use again.

    A weight mapped from its file counts as used memory until its whole file is unmapped, which the
    small tensors that stay prevent; this halves what a server holds.
    """
    weight = linear.weight.data
    linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    if sys.platform != "linux":
        return
    start = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED
        )
