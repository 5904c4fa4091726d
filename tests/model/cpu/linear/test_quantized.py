"""Kernels for quantized weights: that they compute what torch does, and the same bits for one row or many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model.engine.config import Quantization
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.decoder import TorchDecoder
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.network import make_network
from model.phi3v.weights.quantization import quantize_linears
from tests.support.engines.quantized import SCHEMES, logits

HEAD_DIM = 16
# Inputs of layers: within a part of a panel, and several and the rest of one. Outputs fill no whole
# number of panels.
SIZES = {"int8": [(96, 62), (384, 1022)], "int4": [(96, 160), (384, 1056)]}


@torch.inference_mode()
@pytest.mark.parametrize(
    ("scheme", "hidden", "intermediate"),
    [(scheme, *sizes) for scheme in SCHEMES for sizes in SIZES[scheme]],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_compute_the_same(
    tiny: Path, scheme: Quantization, dtype: torch.dtype, hidden: int, intermediate: int
) -> None:
    config = Phi3VConfig.from_pretrained(tiny)
    config.hidden_size, config.intermediate_size = hidden, intermediate
    config.num_attention_heads = config.num_key_value_heads = hidden // HEAD_DIM
    torch.manual_seed(0)
    model = Phi3VForCausalLM(config).eval().requires_grad_(False)
    quantize_linears(model, scheme)
    model.to(dtype)
    expected = logits(TorchDecoder(model), head_dim=HEAD_DIM)
    decoder = make_network(model).decoder
    if not decoder.batch_invariant:
        pytest.skip("this CPU multiplies faster, or only, without the kernels")
    found = logits(decoder, head_dim=HEAD_DIM)
    # Torch rounds weights of 8 bits to bfloat16, and sums of both; the kernels do neither.
    bounds: dict[str, Any] = (
        {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 0.05, "atol": 0.15}
    )
    torch.testing.assert_close(found, expected, **bounds)
    for tokens in (1, 2, 3, 7, 12, 33):
        assert torch.equal(logits(decoder, tokens, HEAD_DIM), found[:tokens])


@pytest.mark.parametrize(("scheme", "dtype"), [("int4", torch.bfloat16), ("int8", torch.float32)])
def test_more_rows_than_an_item_of_work_has(
    tiny: Path, scheme: Quantization, dtype: torch.dtype
) -> None:
    model = Phi3VForCausalLM.from_pretrained(tiny, dtype=dtype).eval()
    quantize_linears(model.requires_grad_(False), scheme)
    decoder = make_network(model).decoder
    if not decoder.batch_invariant:
        pytest.skip("this CPU multiplies faster, or only, without the kernels")
    with torch.inference_mode():
        many = logits(decoder, 600)
        for tokens in (40, 257):  # the last of which is an item of its own
            assert torch.equal(many[:tokens], logits(decoder, tokens))
