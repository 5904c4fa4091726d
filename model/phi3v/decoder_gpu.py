"""The decoder on a GPU: nine kernels a layer, four of them the vendor's matrix products.

Shape suffixes as in ``decoder``; K columns of the fused projection, ``(H + 2 G) D``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import embedding

from model.gpu import support
from model.gpu.gate import silu_gate
from model.gpu.norm import add_rms_norm
from model.phi3v.decoder import Attention
from model.phi3v.modeling import Phi3VForCausalLM


@runtime_checkable
class FusedAttention(Protocol):
    """An ``Attention`` that also splits and rotates the fused projection."""

    def fused(
        self, layer: int, qkv_TK: Tensor, cos_TD: Tensor, sin_TD: Tensor, heads: int
    ) -> Tensor:
        """Attention output ``(T, H D)`` of layer ``layer``, from its projection of all tokens."""
        ...


def unsupported_reason(model: Phi3VForCausalLM) -> str | None:
    """Why the kernels do not support a model on its devices; None if they do."""
    config = model.config
    if config.hidden_act != "silu":
        return f"the decoder's activation is {config.hidden_act}, not silu"
    devices = {layer.input_layernorm.weight.device for layer in model.model.layers}
    reasons = (support.unsupported_reason(config, model.dtype, device) for device in devices)
    return next(filter(None, reasons), None)


class GpuDecoder:
    """See ``model.phi3v.decoder.Decoder``; needs a ``FusedAttention``.

    Attributes:
        vocabulary: number of logits.
    """

    batch_invariant = False
    fuses_attention = True

    def __init__(self, model: Phi3VForCausalLM) -> None:
        self._model = model
        self._heads = model.config.num_attention_heads
        self._eps = model.config.rms_norm_eps
        self.vocabulary = model.lm_head.weight.shape[0]
        self.dtype = model.dtype
        self.device = model.model.embed_tokens.weight.device
        self.layer_devices = [layer.input_layernorm.weight.device for layer in model.model.layers]

    def embed(self, token_ids: Tensor) -> Tensor:
        """See ``Decoder``."""
        return embedding(token_ids, self._model.model.embed_tokens.weight)

    def __call__(
        self, hidden_TE: Tensor, cos_TD: Tensor, sin_TD: Tensor, attend: Attention
    ) -> Tensor:
        """See ``Decoder``; changes ``hidden_TE`` in place."""
        assert isinstance(attend, FusedAttention)
        added_TE: Tensor | None = None
        for device, layers in groupby(
            range(len(self.layer_devices)), self.layer_devices.__getitem__
        ):
            if hidden_TE.device != device:
                hidden_TE, cos_TD, sin_TD = (x.to(device) for x in (hidden_TE, cos_TD, sin_TD))
                added_TE = None if added_TE is None else added_TE.to(device)
            with _current(device):
                for index in layers:
                    added_TE = self._layer(index, hidden_TE, added_TE, cos_TD, sin_TD, attend)
        hidden_TE = hidden_TE.to(self.device)
        assert added_TE is not None
        return self._norm(hidden_TE, added_TE.to(self.device), self._model.model.norm.weight)

    def logits(self, hidden_SE: Tensor, out_SV: Tensor | None = None) -> Tensor:
        """See ``Decoder``; writes to ``out_SV`` if given."""
        logits_SV = self._model.lm_head(hidden_SE)
        return logits_SV.to(torch.float32) if out_SV is None else out_SV.copy_(logits_SV)

    def _layer(
        self,
        index: int,
        residual_TE: Tensor,
        added_TE: Tensor | None,
        cos_TD: Tensor,
        sin_TD: Tensor,
        attend: FusedAttention,
    ) -> Tensor:
        """One layer; adds to ``residual_TE`` in place, and returns what is still to be added."""
        layer = self._model.model.layers[index]
        attention, mlp = layer.self_attn, layer.mlp
        normed_TE = self._norm(residual_TE, added_TE, layer.input_layernorm.weight)
        qkv_TK = attention.qkv_proj(normed_TE)
        attended = attend.fused(index, qkv_TK, cos_TD, sin_TD, self._heads)
        normed_TE = self._norm(
            residual_TE, attention.o_proj(attended), layer.post_attention_layernorm.weight
        )
        both_TI2 = mlp.gate_up_proj(normed_TE)
        gated_TI = both_TI2.new_empty(len(both_TI2), both_TI2.shape[1] // 2)
        silu_gate(both_TI2, gated_TI)
        return mlp.down_proj(gated_TI)

    def _norm(self, residual_TE: Tensor, added_TE: Tensor | None, weight_E: Tensor) -> Tensor:
        normed_TE = torch.empty_like(residual_TE)
        add_rms_norm(residual_TE, added_TE, weight_E, self._eps, normed_TE)
        return normed_TE


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one, where Triton launches kernels."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
