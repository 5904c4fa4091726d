"""The gate of the MLP, compared with torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

pytest.importorskip("triton")

from model.gpu.gate import silu_gate
from scripts.gpu_checking.references import poisoned
from tests.support.closeness import assert_close


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(1, 8192), (3, 8192), (17, 200), (70, 24)])
def test_multiplies_by_silu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(shape[0], 2 * shape[1]).mul(2).to(dtype)
    out = poisoned(*shape, dtype=dtype)
    silu_gate(gate_up, out)
    gate, up = gate_up.float().chunk(2, dim=-1)
    assert_close(out, up * silu(gate).to(dtype).float())


def test_low_precision_rounds_as_the_model_does() -> None:
    torch.manual_seed(1)
    gate_up = torch.randn(64, 400).mul(4).half()
    out = poisoned(64, 200, dtype=torch.float16)
    silu_gate(gate_up, out)
    gate, up = gate_up.chunk(2, dim=-1)
    # exp's last bit moves a float32 now and then over the border between two float16.
    assert (out != up * silu(gate)).float().mean() < 1e-3
