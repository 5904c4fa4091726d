"""The tolerance of kernels against torch in float32."""

from __future__ import annotations

from torch import Tensor

from scripts.gpu_checking.references import excess


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """``actual`` differs from float32 ``expected`` by its dtype's tolerance times max(1, |expected|)."""
    assert actual.shape == expected.shape
    found = excess(actual, expected)
    assert found <= 1, f"{found:.2f} times the tolerance"
