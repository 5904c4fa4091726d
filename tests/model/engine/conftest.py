"""Models and stand-ins for the tests of engines as on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import varlen

from model.phi3v.configuration import Phi3VConfig
from model.phi3v.modeling import Phi3VForCausalLM
from tests.support.engines.gpu_stand_ins import Tape, varlen_attention


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """The CUDA graphs that engines make, with stand-ins for what needs a GPU."""
    made: list[Tape] = []

    def make() -> Tape:
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attention)
    monkeypatch.setattr("model.engine.execution.cuda_graphs.CudaCapture", make)
    return made


@pytest.fixture(scope="module")
def gpu_model(tiny: Path) -> Phi3VForCausalLM:
    """Random weights, with two query heads for each key-value head."""
    config = Phi3VConfig.from_pretrained(tiny)
    config.num_key_value_heads = 2
    torch.manual_seed(0)
    return Phi3VForCausalLM(config).eval()
