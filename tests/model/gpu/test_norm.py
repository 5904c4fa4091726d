"""Residual addition and norm, compared with the model's own layer."""

from __future__ import annotations

import pytest
import torch
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm

pytest.importorskip("triton")

from model.gpu.norm import add_rms_norm
from scripts.gpu_checking.references import poisoned
from tests.support.closeness import assert_close

DTYPES = [torch.float32, torch.float16]
SHAPES = [(1, 3072), (3, 3072), (17, 96), (130, 40)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("adds", [True, False])
def test_adds_and_norms(shape: tuple[int, int], dtype: torch.dtype, adds: bool) -> None:
    torch.manual_seed(0)
    residual = torch.randn(shape).to(dtype)
    added = torch.randn(shape).to(dtype) if adds else None
    weight = torch.rand(shape[1]).to(dtype)
    layer = Phi3RMSNorm(shape[1], eps=1e-5)
    layer.weight.data = weight.float()
    expected = residual if added is None else residual + added
    out = poisoned(*shape, dtype=dtype)

    add_rms_norm(residual, added, weight, 1e-5, out)

    assert torch.equal(residual, expected)
    assert_close(out, layer(expected.float()))


def test_low_precision_rounds_as_the_model_does() -> None:
    torch.manual_seed(1)
    x = (torch.randn(64, 96) * 3).half()
    layer = Phi3RMSNorm(96, eps=1e-5).half()
    layer.weight.data = torch.rand(96).half()
    out = torch.empty_like(x)
    add_rms_norm(x, None, layer.weight.data, 1e-5, out)
    # A sum in another order moves a float32 now and then over the border between two float16.
    assert (out != layer(x)).float().mean() < 1e-3


def test_a_row_does_not_depend_on_others() -> None:
    torch.manual_seed(2)
    x = torch.randn(70, 3072)
    together, alone = torch.empty_like(x), torch.empty(1, 3072)
    add_rms_norm(x.clone(), x, torch.ones(3072), 1e-5, together)
    add_rms_norm(x[65:66].clone(), x[65:66], torch.ones(3072), 1e-5, alone)
    assert torch.equal(together[65:66], alone)
