"""LongRoPE: rotary angles of Phi-3, with the factor set chosen per sequence.

Two sets of frequency factors exist. A sequence uses the *short* set while its total length (prompt
and generated tokens) is at most ``original_max_position_embeddings`` and the *long* set, for every
one of its positions, once it is longer: its *rope regime*. Keys cached under one regime are wrong
under the other, so the engine recomputes a sequence that crosses.

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
    """Which factor set a sequence uses; the value is its row in the frequency table."""

    SHORT = 0
    LONG = 1


class LongRope:
    """Frequencies of both regimes, and the cos and sin of any token's position under its own.

    Angles are computed in float32 for the tokens of a step (T x 48 values once per step, shared by
    all layers), which costs less memory than tables of 131,072 positions and is equal bit for bit.
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
        self.inv_freq_RF = torch.stack(
            [1.0 / (torch.tensor(factor, dtype=torch.float32) * base_F) for factor in factors]
        ).to(device)

    def regime(self, length: int) -> RopeRegime:
        """The regime of a sequence of ``length`` tokens in total."""
        return RopeRegime.SHORT if length <= self.original_length else RopeRegime.LONG

    def cos_sin(
        self, position_T: Tensor, regime_T: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Cos and sin of shape ``(T, D)``, scaled, in ``dtype``.

        Args:
            position_T: int64 positions in their sequences, from 0.
            regime_T: int64 ``RopeRegime`` of each token's sequence.
            dtype: of the query and key they will rotate.
        """
        angle_TF = position_T[:, None].float() * self.inv_freq_RF[regime_T]
        angle_TD = torch.cat((angle_TF, angle_TF), dim=-1)
        return (angle_TD.cos() * self.scaling).to(dtype), (angle_TD.sin() * self.scaling).to(dtype)


def attention_scaling(max_length: int, original_length: int) -> float:
    """LongRoPE's factor on cos and sin; 1 when the window was never extended."""
    if max_length <= original_length:
        return 1.0
    return math.sqrt(1 + math.log(max_length / original_length) / math.log(original_length))


def rotate(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotate the head dimension of queries or keys; halves are paired as in GPT-NeoX."""
    half = x_THD.shape[-1] // 2
    rotated_THD = torch.cat((-x_THD[..., half:], x_THD[..., :half]), dim=-1)
    return x_THD * cos_TD[:, None] + rotated_THD * sin_TD[:, None]
