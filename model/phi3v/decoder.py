"""The Phi-3 decoder as the engine runs it, on the packed tokens of many sequences.

Everything but attention works on single tokens, so sequences need no padding. Attention is an argument;
it gets a layer's queries, keys and values, and owns the KV cache. The weights are those of
``Phi3VForCausalLM``. This implementation runs on any device; ``decoder_cpu`` and ``decoder_gpu``
are faster where they are supported.

Shape suffixes: T tokens of all sequences, E hidden size, H query heads, G key-value heads,
D head dim, S tokens that need logits, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer

from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.rope import rotate


class Attention(Protocol):
    """Stores a layer's keys and values, and attends each token to its sequence so far."""

    def __call__(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """Attention output ``(T, H, D)`` of layer ``layer``, in the dtype of ``q_THD``."""
        ...


class Decoder(Protocol):
    """The decoder layers and the language model head.

    Attributes:
        dtype: of hidden states, cos and sin.
        device: of all arguments and results, except those of attention.
        layer_devices: of each layer and its attention.
        batch_invariant: whether results are bit-identical regardless of batching.
        fuses_attention: whether attention must be a ``decoder_gpu.FusedAttention``.
    """

    dtype: torch.dtype
    device: torch.device
    layer_devices: list[torch.device]
    batch_invariant: bool
    fuses_attention: bool

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embeddings ``(T, E)`` of ``token_ids``, int64 or int32."""
        ...

    def __call__(
        self, hidden_TE: Tensor, cos_TD: Tensor, sin_TD: Tensor, attend: Attention
    ) -> Tensor:
        """Hidden states ``(T, E)`` after all layers, for ``logits``. May change ``hidden_TE``."""
        ...

    def logits(self, hidden_SE: Tensor) -> Tensor:
        """Float32 logits ``(S, V)`` of hidden states after all layers."""
        ...


class TorchDecoder:
    """The decoder with torch's operators, on one or several devices of any kind; see ``Decoder``."""

    batch_invariant = False
    fuses_attention = False

    def __init__(self, model: Phi3VForCausalLM) -> None:
        self._model = model
        self.dtype = model.dtype
        self.device = model.model.embed_tokens.weight.device
        self.layer_devices = [layer.input_layernorm.weight.device for layer in model.model.layers]

    def embed(self, token_ids: Tensor) -> Tensor:
        """See ``Decoder``."""
        return self._model.model.embed_tokens(token_ids)

    def __call__(
        self, hidden_TE: Tensor, cos_TD: Tensor, sin_TD: Tensor, attend: Attention
    ) -> Tensor:
        """See ``Decoder``."""
        device = self.device
        for index, layer in enumerate(self._model.model.layers):
            if device != self.layer_devices[index]:
                device = self.layer_devices[index]
                hidden_TE, cos_TD, sin_TD = (x.to(device) for x in (hidden_TE, cos_TD, sin_TD))
            hidden_TE = hidden_TE + _attention(
                layer, index, layer.input_layernorm(hidden_TE), cos_TD, sin_TD, attend
            )
            hidden_TE = hidden_TE + layer.mlp(layer.post_attention_layernorm(hidden_TE))
        return hidden_TE.to(self.device)

    def logits(self, hidden_SE: Tensor) -> Tensor:
        """See ``Decoder``."""
        return self._model.lm_head(self._model.model.norm(hidden_SE)).to(torch.float32)


def _attention(
    layer: Phi3DecoderLayer,
    index: int,
    normed_TE: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    attend: Attention,
) -> Tensor:
    attention = layer.self_attn
    head_dim, groups = attention.head_dim, int(attention.num_key_value_heads or 0)
    qkv = attention.qkv_proj(normed_TE).view(normed_TE.shape[0], -1, head_dim)
    heads = qkv.shape[1] - 2 * groups
    q_THD, k_TGD, v_TGD = qkv.split([heads, groups, groups], dim=1)
    output_THD = attend(index, rotate(q_THD, cos_TD, sin_TD), rotate(k_TGD, cos_TD, sin_TD), v_TGD)
    return attention.o_proj(output_THD.flatten(1))
