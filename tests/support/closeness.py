"""The tolerance of kernels against torch in float32."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """``actual`` differs from float32 ``expected`` by its dtype's tolerance times max(1, |expected|)."""
    assert actual.shape == expected.shape
    difference = (actual.float() - expected).abs()
    allowed = TOLERANCE[actual.dtype] * expected.abs().clamp(min=1)
    excess = (
        (difference / allowed).nan_to_num(nan=torch.inf).max().item() if actual.numel() else 0.0
    )
    assert excess <= 1, f"{excess:.2f} times the tolerance"


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """Memory whose use would show in any result."""
    return torch.full(shape, torch.nan, dtype=dtype)
