"""The KV cache for GPUs on the CPU: Triton's interpreter, and a stand-in for the vendor's attention."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen

from model.engine.config import EngineConfig
from model.engine.kv_cache.base import KVCache, Span
from model.engine.kv_cache.choice import make_kv_cache
from model.engine.kv_cache.gpu import GpuKVCache
from model.engine.kv_cache.prefill import Prefill, sdpa, varlen
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.rope import rotate
from tests.support.engines.gpu_stand_ins import refuses, varlen_attention

CPU = torch.device("cpu")
HEADS, HEAD_DIM = 4, 16
# Spans of a step: sequence, start, end.
STEPS = [
    [(0, 0, 19)],
    [(1, 0, 1), (0, 19, 20), (2, 0, 5)],
    [(2, 5, 48), (1, 1, 2), (0, 20, 32)],  # continues a long chunk; a single token; a short chunk
    [(0, 32, 33), (1, 2, 3), (2, 48, 49)],
    [(3, 0, 17), (4, 0, 60), (2, 49, 52), (0, 33, 50)],  # two prompts that begin, one call
]


def small_config(groups: int) -> Phi3VConfig:
    return Phi3VConfig(
        hidden_size=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=groups,
        num_hidden_layers=2,
    )


def make_cache(groups: int, prefill: Prefill = sdpa) -> GpuKVCache:
    cache = GpuKVCache(
        small_config(groups),
        20,
        torch.float32,
        CPU,
        rows=5,
        max_blocks=4,
        prefill=prefill,
    )
    cache.blocks.fill_(torch.nan)  # unwritten memory must not influence results
    return cache


def tables() -> list[list[int]]:
    return torch.randperm(20, generator=torch.Generator().manual_seed(1)).view(5, 4).tolist()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_varlen, "varlen_attn", varlen_attention)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("prefill", [sdpa, varlen])
@pytest.mark.usefixtures("stand_in")
def test_attention_is_that_of_the_generic_cache(groups: int, prefill: Prefill) -> None:
    """Rotated inputs, and the fused projection."""
    blocks = tables()
    generic = KVCache(small_config(groups), 20, 16, torch.float32, CPU)
    plain, fused = make_cache(groups, prefill), make_cache(groups, prefill)
    for step in STEPS:
        spans = [Span(blocks[i], start, end) for i, start, end in step]
        tokens = sum(map(len, spans))
        attentions = [cache.attention(spans) for cache in (generic, plain, fused)]
        half = torch.rand(2, tokens, HEAD_DIM // 2)
        cos_TD, sin_TD = torch.cat([half, half], dim=-1)
        for layer in range(2):
            qkv = torch.randn(tokens, HEADS + 2 * groups, HEAD_DIM)
            q_THD, k_TGD, v_TGD = qkv.split([HEADS, groups, groups], dim=1)
            q_THD, k_TGD = rotate(q_THD, cos_TD, sin_TD), rotate(k_TGD, cos_TD, sin_TD)
            expected, found = (a(layer, q_THD, k_TGD, v_TGD) for a in attentions[:2])
            torch.testing.assert_close(found, expected)
            found = attentions[2].fused(layer, qkv.flatten(1), cos_TD, sin_TD, HEADS)
            torch.testing.assert_close(found, expected.flatten(1))


@pytest.mark.usefixtures("stand_in")
def test_prompts_that_begin_together_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[int], list[int]]] = []

    def counted(queries: Any, keys: Any, device: torch.device) -> Any:
        calls.append((list(queries), list(keys)))
        return varlen(queries, keys, device)

    blocks, cache = tables(), make_cache(2, counted)
    cache.attention([Span(blocks[i], start, end) for i, start, end in STEPS[-1]])
    assert calls == [([17, 60], [17, 60]), ([17], [50])]


def test_a_copied_block_has_all_layers() -> None:
    cache = make_cache(2)
    cache.blocks[:, 3] = torch.randn(2, 2, 2, 16, HEAD_DIM)
    cache.copy_block(3, 7)
    assert torch.equal(cache.blocks[:, 7], cache.blocks[:, 3])


def test_the_stand_in_has_torchs_signature() -> None:
    def parameters(function: Any) -> list[Any]:
        found = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in found]

    assert parameters(varlen_attention) == parameters(torch_varlen.varlen_attn)


def zeros(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.zeros_like(query)


def first_sequence_only(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    output = varlen_attention(query, *args, **kwargs)
    output[args[2][1] :] = torch.nan
    return output


def aligned_at_the_start(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """The causal mask that ``scaled_dot_product_attention`` has: right for whole prompts only."""
    starts = zip(cu_seq_q[:-1], args[0][:-1], cu_seq_q.diff(), strict=True)
    rows = torch.cat([torch.arange(k, k + count) for _, k, count in starts])
    sizes = (cu_seq_q, cu_seq_q, args[1], args[1])
    return varlen_attention(query, key[rows], value[rows], *sizes, **kwargs)


def transposed(*args: Any, **kwargs: Any) -> Tensor:
    return varlen_attention(*args, **kwargs).transpose(0, 1)


def made(dtype: torch.dtype) -> GpuKVCache:
    sizes = EngineConfig(max_model_len=64, num_blocks=8)
    cache = make_kv_cache(small_config(2), sizes, dtype, [CPU] * 2, fused=True)
    assert isinstance(cache, GpuKVCache)
    return cache


def prefill_of(cache: GpuKVCache, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which attention computes a prompt."""
    used: list[str] = []

    def spy(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            used.append("varlen")
            return function(*args, **kwargs)

        return call

    if "torch.nn.attention.varlen" in sys.modules and sys.modules["torch.nn.attention.varlen"]:
        monkeypatch.setattr(torch_varlen, "varlen_attn", spy(torch_varlen.varlen_attn))
    inputs = [torch.randn(20, heads, HEAD_DIM, dtype=cache.blocks.dtype) for heads in (4, 2, 2)]
    cache.attention([Span([3, 5], 0, 20)])(0, *inputs)
    return "varlen" if used else "sdpa"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (None, "import of torch.nn.attention.varlen halted; None in sys.modules"),
        (refuses, "RuntimeError: FlashAttention only supports Ampere GPUs or newer."),
        (zeros, "its results are off by "),
        (aligned_at_the_start, "its results are off by "),
        (first_sequence_only, "its results are off by nan"),
        (transposed, "its result has the wrong shape (4, "),
    ],
)
def test_a_function_that_does_not_work_is_not_used(
    function: Any,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if function is None:
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    else:
        monkeypatch.setattr(torch_varlen, "varlen_attn", function)
    cache = made(torch.bfloat16)
    (message,) = caplog.messages
    assert message.startswith("computing prompts one by one, which is slower: varlen_attn: ")
    assert reason in message
    assert prefill_of(cache, monkeypatch) == "sdpa"


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("dtype", "used"),
    [(torch.bfloat16, "varlen"), (torch.float16, "varlen"), (torch.float32, "sdpa")],
)
def test_a_function_that_works_is_used(
    dtype: torch.dtype,
    used: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = made(dtype)
    assert not caplog.records
    assert prefill_of(cache, monkeypatch) == used
