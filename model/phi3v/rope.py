"""LongRoPE: rotary angles of Phi-3, with the factor set chosen per sequence.

There are two sets of frequency factors. A sequence uses the *short* set while its total length (prompt
and generated tokens) is at most ``original_max_position_embeddings``, and the *long* set for all its
positions once it is longer; this is its *rope regime*. Cached keys of one regime are wrong in the other,
so the engine recomputes a sequence when its regime changes.

Formulas: "LongRoPE" (arXiv:2402.13753); cos and sin are scaled in both regimes by
``sqrt(1 + ln(max / original) / ln(original))``.

Shape suffixes: T tokens, D head dim, R rope regimes (2), F frequencies (D / 2).
"""

from __future__ import annotations

import enum
import math
from typing import Any

import torch
from torch import Tensor

from model.phi3v.configuration import Phi3VConfig


class RopeRegime(enum.IntEnum):
    """The factor set of a sequence; the value is its row in the frequency table."""

    SHORT = 0
    LONG = 1


class LongRope:
    """Frequencies of both regimes, and cos and sin of token positions.

    Angles are computed in float32 once per step for its tokens (T x 48 values, shared by all layers).
    This takes less memory than tables of 131,072 positions and gives the same bits.
    """

    def __init__(self, config: Phi3VConfig, device: torch.device | str = "cpu") -> None:
        parameters: dict[str, Any] = dict(config.rope_parameters or {})
        head_dim = config.hidden_size // config.num_attention_heads
        exponent_F = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        base_F = parameters["rope_theta"] ** exponent_F
        if parameters["rope_type"] == "default":
            ones = [1.0] * (head_dim // 2)
            factors, scaling = (ones, ones), 1.0
            self.original_length = config.max_position_embeddings
        else:
            factors = (parameters["short_factor"], parameters["long_factor"])
            self.original_length = config.original_max_position_embeddings
            scaling = attention_scaling(config.max_position_embeddings, self.original_length)
        self.scaling = scaling
        inv_freq_RF = torch.stack(
            [1.0 / (torch.tensor(factor, dtype=torch.float32) * base_F) for factor in factors]
        )
        # Twice, because both halves of a head are rotated by the same angles.
        self.inv_freq_RD = torch.cat((inv_freq_RF, inv_freq_RF), dim=-1).to(device)

    def regime(self, length: int) -> RopeRegime:
        """The regime of a sequence with ``length`` tokens."""
        return RopeRegime.SHORT if length <= self.original_length else RopeRegime.LONG

    def cos_sin(
        self, position_T: Tensor, regime_T: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Cos and sin of shape ``(T, D)``, scaled, in ``dtype``.

        Args:
            position_T: integer positions in the sequences, from 0.
            regime_T: integer ``RopeRegime`` of each token's sequence.
            dtype: of the results.
        """
        # Indexing would convert int32 to int64 first, which is another kernel on a GPU.
        angle_TD = position_T[:, None] * self.inv_freq_RD.index_select(0, regime_T)
        cos_TD, sin_TD = (torch.empty_like(angle_TD, dtype=dtype) for _ in range(2))
        torch.mul(angle_TD.cos(), self.scaling, out=cos_TD)
        torch.mul(angle_TD.sin(), self.scaling, out=sin_TD)
        return cos_TD, sin_TD


def attention_scaling(max_length: int, original_length: int) -> float:
    """LongRoPE's factor of cos and sin; 1 if the context window is not extended."""
    if max_length <= original_length:
        return 1.0
    return math.sqrt(1 + math.log(max_length / original_length) / math.log(original_length))


def rotate(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotate the head dimension of queries or keys; halves are paired as in GPT-NeoX."""
    half = x_THD.shape[-1] // 2
    rotated_THD = torch.cat((-x_THD[..., half:], x_THD[..., :half]), dim=-1)
    return x_THD * cos_TD[:, None] + rotated_THD * sin_TD[:, None]
