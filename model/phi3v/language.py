"""The Phi-3 decoder as the engine runs it: the tokens of many sequences packed in one row.

Everything but attention works on single tokens, so sequences need no padding; attention is an
argument, called with the queries, keys and values of a layer, and owns the KV cache. The weights
are those of ``Phi3VForCausalLM``.

Shape suffixes: T tokens of all sequences, E hidden size, H query heads, G key-value heads,
D head dim, S sequences that want logits, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer

from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.rope import rotate


class Attention(Protocol):
    """Stores a layer's keys and values, and attends each token to its own sequence's past."""

    def __call__(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """Attention output ``(T, H, D)`` of layer ``layer``."""
        ...


def decode(
    model: Phi3VForCausalLM, hidden_TE: Tensor, cos_TD: Tensor, sin_TD: Tensor, attend: Attention
) -> Tensor:
    """Run the decoder layers; returns hidden states ``(T, E)`` before the final norm."""
    for index, layer in enumerate(model.model.layers):
        hidden_TE = hidden_TE + _attention(
            layer, index, layer.input_layernorm(hidden_TE), cos_TD, sin_TD, attend
        )
        hidden_TE = hidden_TE + layer.mlp(layer.post_attention_layernorm(hidden_TE))
    return hidden_TE


def logits(model: Phi3VForCausalLM, hidden_SE: Tensor) -> Tensor:
    """Float32 logits ``(S, V)`` of the chosen tokens."""
    return model.lm_head(model.model.norm(hidden_SE)).to(torch.float32)


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
