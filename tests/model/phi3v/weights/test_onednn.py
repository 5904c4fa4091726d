"""Packed linear layers compute what plain ones do, and their absence is survived."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.weights import onednn
from model.phi3v.weights.onednn import OneDnnLinear, use_onednn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 16, 300])
def test_equal_to_a_plain_layer(dtype: torch.dtype, bias: bool, rows: int) -> None:
    plain = nn.Linear(96, 160, bias=bias, dtype=dtype)
    packed = OneDnnLinear(plain.weight.data, plain.bias.data if bias else None)
    for shape in ((rows, 96), (2, rows, 96)):
        x = torch.randn(shape, dtype=dtype)
        with torch.no_grad():
            torch.testing.assert_close(packed(x), plain(x), rtol=2e-2, atol=1e-4)


@pytest.fixture
def network(tiny: Path) -> Phi3VForCausalLM:
    return Phi3VForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


@torch.no_grad()
def test_a_packed_network(network: Phi3VForCausalLM) -> None:
    ids = torch.arange(1, 40)[None]
    before = network(input_ids=ids).logits
    use_onednn(network)
    assert not [module for module in network.modules() if isinstance(module, nn.Linear)]
    torch.testing.assert_close(network(input_ids=ids).logits, before, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("wrong", [False, True])
def test_a_machine_that_cannot(
    network: Phi3VForCausalLM,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: bool,
) -> None:
    """No such operation, or one that computes nonsense: the layers stay, and the log says so."""

    class Broken(nn.Module):
        def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
            super().__init__()
            if not wrong:
                raise RuntimeError("no such operation")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((3, 48), 99.0)

    monkeypatch.setattr(onednn, "OneDnnLinear", Broken)
    with caplog.at_level(logging.WARNING):
        use_onednn(network)
    assert "using unpacked linear layers" in caplog.text
    assert [module for module in network.modules() if isinstance(module, nn.Linear)]
