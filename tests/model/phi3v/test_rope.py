"""LongRoPE's angles against transformers' own, and the choice of the regime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from model.phi3v.configuration import Phi3VConfig
from model.phi3v.rope import LongRope, RopeRegime, attention_scaling


@pytest.fixture(scope="module")
def config(tiny: Path) -> Phi3VConfig:
    return Phi3VConfig.from_pretrained(tiny)


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, 5000])
def test_angles_equal_transformers(config: Phi3VConfig, length: int) -> None:
    positions = torch.arange(length)
    rope = LongRope(config)
    regimes = torch.full((length,), int(rope.regime(length)))
    cos, sin = rope.cos_sin(positions, regimes, torch.float32)
    expected = Phi3RotaryEmbedding(config)(torch.zeros(1), positions[None])
    assert torch.equal(cos, expected[0][0])
    assert torch.equal(sin, expected[1][0])


def test_regime_changes_after_the_original_length(config: Phi3VConfig) -> None:
    rope = LongRope(config)
    assert rope.regime(1024) is RopeRegime.SHORT
    assert rope.regime(1025) is RopeRegime.LONG


def test_each_token_has_the_angles_of_its_own_regime(config: Phi3VConfig) -> None:
    rope = LongRope(config)
    position = torch.tensor([7, 7])
    mixed, _ = rope.cos_sin(position, torch.tensor([0, 1]), torch.float32)
    short, _ = rope.cos_sin(position, torch.tensor([0, 0]), torch.float32)
    assert torch.equal(mixed[0], short[0])
    assert not torch.equal(mixed[1], short[1])


def test_scaling() -> None:
    assert attention_scaling(131072, 4096) == pytest.approx(1.190238, abs=1e-6)
    assert attention_scaling(8192, 1024) == pytest.approx(1.140175425, abs=1e-9)
    assert attention_scaling(4096, 4096) == 1.0


def test_default_rope() -> None:
    """A checkpoint that was never extended has one regime."""
    config = Phi3VConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=512)
    rope = LongRope(config)
    assert rope.regime(512) is RopeRegime.SHORT
    assert torch.equal(rope.inv_freq_RD[0], rope.inv_freq_RD[1])
    assert rope.scaling == 1.0
