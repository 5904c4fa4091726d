"""Warming up runs each form of each kernel that a model needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from model.gpu.launch import Launch, intercepted
from model.gpu.warm_up import compilations


def sizes(vocabulary: int) -> Any:
    return SimpleNamespace(
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        hidden_act="silu",
    )


def test_every_form_is_launched() -> None:
    config = sizes(200)
    forms = compilations(config, torch.float32, "cpu", max_sequences=64, queries=(1, 5))
    names = [name for name, _ in forms]
    assert len(set(names)) == len(names)
    assert [n for n in names if n.startswith("paged_decode")] == [
        f"paged_decode, {form}" for form in ("1 x 1", "1 x 5", "64 x 1", "64 x 5")
    ]
    seen: list[Launch] = []
    with intercepted(seen.append):
        for _, compile_kernel in forms:
            compile_kernel()
    kernels = [launch.kernel.removesuffix("_kernel") for launch in seen]
    assert kernels == [name.split(",")[0].replace("sample_rows", "sample") for name in names]


def test_steps_of_more_sequences_than_usual_have_all_kernels() -> None:
    forms = compilations(sizes(200), torch.float32, "cpu", max_sequences=300)
    assert [name for name, _ in forms if name.startswith("paged_decode")] == [
        f"paged_decode, {sequences} x 1" for sequences in (1, 256, 300)
    ]


def test_a_vocabulary_too_large_for_the_sampler_is_sampled_without_it() -> None:
    names = [name for name, _ in compilations(sizes(40_000), torch.float32, "cpu")]
    assert names
    assert not [name for name in names if name.startswith("sample_rows")]
