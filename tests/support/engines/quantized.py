"""What tests of quantized weights share."""

from __future__ import annotations

import torch
from torch import Tensor

from model.engine.config import Quantization
from model.phi3v.decoder import Decoder

SCHEMES: list[Quantization] = ["int8", "int4"]


def logits(decoder: Decoder, tokens: int = 40, head_dim: int = 16) -> Tensor:
    """Of some tokens whose attention is their own value."""

    def attend(layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        repeated = v_TGD.repeat_interleave(q_THD.shape[1] // v_TGD.shape[1], 1)
        return repeated.to(q_THD.dtype)

    hidden = decoder.embed(torch.arange(300, 300 + tokens))
    cos = torch.ones(tokens, head_dim, dtype=decoder.dtype)
    return decoder.logits(decoder(hidden, cos, torch.zeros_like(cos), attend))
