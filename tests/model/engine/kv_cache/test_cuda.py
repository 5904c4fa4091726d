"""The KV cache for GPUs on the CPU, with a function of the signature of torch's paged attention."""

from __future__ import annotations

import inspect
import logging
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from model.engine.config import EngineConfig
from model.engine.kv_cache.base import KVCache, Span
from model.engine.kv_cache.choice import make_kv_cache
from model.engine.kv_cache.cuda import CudaKVCache
from model.phi3v.configuration import Phi3VConfig
from tests.support.engines.cuda_stand_ins import paged_attention, refuses

LAYERS = [torch.device("cpu")] * 2


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes the CPU for a GPU."""
    monkeypatch.setattr("model.engine.kv_cache.choice.on_cuda", lambda device: True)


def small_config(groups: int, layers: int = 2) -> Phi3VConfig:
    return Phi3VConfig(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=groups, num_hidden_layers=layers
    )


def sizes(block_size: int = 16) -> EngineConfig:
    return EngineConfig(max_model_len=64, block_size=block_size, num_blocks=8)


def test_the_stand_in_has_torchs_signature() -> None:
    def parameters(function: Any) -> list[Any]:
        found = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in found]

    assert parameters(paged_attention) == parameters(varlen.varlen_attn)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("size", [16, 256])
def test_attention_is_that_of_the_generic_cache(groups: int, size: int) -> None:
    config = small_config(groups)
    args = (config, 12, size, torch.float32, LAYERS[0])
    paged = CudaKVCache(*args, paged_attention)
    caches = [KVCache(*args), paged]
    for cache in caches:
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
    tables = torch.randperm(12, generator=torch.Generator().manual_seed(1)).view(3, 4).tolist()
    steps = [
        [(0, 0, size + 3)],
        [(1, 0, 1), (0, size + 3, size + 4), (2, 0, 5)],
        [(2, 5, 3 * size), (1, 1, 2), (0, size + 4, 2 * size)],
        [(0, 2 * size, 2 * size + 1), (1, 2, 3), (2, 3 * size, 3 * size + 1)],
    ]
    for step in steps:
        spans = [Span(tables[i], start, end) for i, start, end in step]
        tokens = sum(map(len, spans))
        attentions = [cache.attention(spans) for cache in caches]
        for layer in range(2):
            inputs = [torch.randn(tokens, heads, 16) for heads in (4, groups, groups)]
            one, other = (attend(layer, *inputs) for attend in attentions)
            torch.testing.assert_close(one, other)
    assert paged.keys[:, paged.scratch_block].isnan().all()


def zeros(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.zeros_like(query)


def first_sequence_only(
    query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """As FlashAttention 2 does when it splits keys."""
    output = paged_attention(query, key, value, *args, **kwargs)
    output[args[0][1] :] = torch.nan
    return output


def aligned_at_the_start(
    query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """The causal mask that ``scaled_dot_product_attention`` has: right for whole prompts only."""
    lengths = args[0].diff()
    return paged_attention(query, key, value, *args, **{**kwargs, "seqused_k": lengths})


def transposed(*args: Any, **kwargs: Any) -> Tensor:
    return paged_attention(*args, **kwargs).transpose(0, 1)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (None, "import of torch.nn.attention.varlen halted; None in sys.modules"),
        (refuses, "RuntimeError: Paged KV cache block size must be divisible by 256"),
        (zeros, "its results are off by "),
        (aligned_at_the_start, "its results are off by "),
        (first_sequence_only, "its results are off by nan"),
        (transposed, "its result has the wrong shape (4, "),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_function_that_does_not_work_is_not_used(
    function: Any,
    reason: str,
    dtype: torch.dtype,
    on_cuda: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if function is None:
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    else:
        monkeypatch.setattr(varlen, "varlen_attn", function)
    cache = make_kv_cache(small_config(2), sizes(), dtype, LAYERS)
    assert type(cache) is KVCache
    ((name, level, message),) = caplog.record_tuples
    assert (name, level) == ("model.engine.kv_cache.choice", logging.WARNING)
    assert f"is slower: varlen_attn: {reason}" in message


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("size", [16, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_function_that_works_is_used(
    groups: int,
    size: int,
    dtype: torch.dtype,
    on_cuda: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", paged_attention)
    cache = make_kv_cache(small_config(groups), sizes(size), dtype, LAYERS)
    assert isinstance(cache, CudaKVCache)
    assert cache.keys.shape == (2, 8 + 1, size, groups, 16)
    assert not caplog.records
