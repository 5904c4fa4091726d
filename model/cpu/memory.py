"""How memory is given back."""

from __future__ import annotations

import ctypes

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
