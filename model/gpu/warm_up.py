"""Every kernel in every form that a model needs, to be compiled before the first request.

for name, compile_kernel in compilations(config, dtype, device, max_sequences=64, queries=(1, 5)):
    compile_kernel()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.gpu.gate import silu_gate
from model.gpu.norm import add_rms_norm
from model.gpu.paged_decode import FEW_SEQUENCES, DecodeScratch, paged_decode, scratch_shapes
from model.gpu.rope_store import BLOCK, split_rope_store
from model.gpu.sample import sample_rows
from model.gpu.support import LARGEST_VOCABULARY, DecoderSizes

Compilation = tuple[str, Callable[[], None]]


def compilations(
    config: DecoderSizes,
    dtype: torch.dtype,
    device: torch.device | str,
    max_sequences: int = 1,
    queries: Sequence[int] = (1,),
) -> list[Compilation]:
    """Names of the kernels' forms, and functions that launch each on a few zeros.

    Args:
        max_sequences: most sequences of a step.
        queries: numbers of tokens that sequences may have in a step of ``paged_decode``.
    """

    def zeros(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.zeros(shape, dtype=of, device=device)

    heads = config.num_attention_heads
    groups = config.num_key_value_heads or heads
    width, inner, dim = config.hidden_size, config.intermediate_size, config.hidden_size // heads
    row, weight, q, kv = zeros(1, width), zeros(width), zeros(1, heads, dim), zeros(1, groups, dim)
    cache, slot = zeros(1, 2, groups, BLOCK, dim), zeros(1, of=torch.int32)
    fused = (zeros(1, (heads + 2 * groups) * dim), zeros(1, dim), zeros(1, dim), slot, cache, q)
    gate_up, gated = zeros(1, 2 * inner), zeros(1, inner)
    return [
        ("add_rms_norm, first", lambda: add_rms_norm(row, None, weight, 1e-5, row)),
        ("add_rms_norm", lambda: add_rms_norm(row, row, weight, 1e-5, row)),
        ("split_rope_store", lambda: split_rope_store(*fused)),
        ("split_rope_store, prefill", lambda: split_rope_store(*fused, kv, kv)),
        ("silu_gate", lambda: silu_gate(gate_up, gated)),
        *_attention(q, cache, max_sequences, queries),
        *_sampling(config.vocab_size, device),
    ]


def _attention(
    q_THD: Tensor, cache_layer: Tensor, max_sequences: int, queries: Sequence[int]
) -> list[Compilation]:
    heads, dim = q_THD.shape[1:]
    device = q_THD.device
    shapes = scratch_shapes(max_sequences, max(queries), heads, dim, 1).items()
    scratch = DecodeScratch(
        **{name: torch.zeros(s, dtype=t, device=device) for name, (s, t) in shapes}
    )

    def form(sequences: int, query: int) -> Compilation:
        def attend() -> None:
            table_SW = torch.zeros((sequences, 1), dtype=torch.int32, device=device)
            length_S = torch.zeros(sequences, dtype=torch.int32, device=device)
            start_S1 = torch.zeros(sequences + 1, dtype=torch.int32, device=device)
            starts = start_S1 if query > 1 else None
            paged_decode(q_THD, cache_layer, table_SW, length_S, starts, query, scratch, q_THD)

        return f"paged_decode, {sequences} x {query}", attend

    sizes = sorted({1, min(max_sequences, FEW_SEQUENCES), max_sequences})
    return [form(sequences, query) for sequences in sizes for query in queries]


def _sampling(vocabulary: int, device: torch.device | str) -> list[Compilation]:
    if vocabulary > LARGEST_VOCABULARY:
        return []
    logits = torch.zeros((1, vocabulary), device=device)
    one, whole = torch.ones(1, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    arguments = (logits, one, whole.int(), one, whole, whole, whole)
    return [
        ("sample_rows", lambda: sample_rows(*arguments)),
        ("sample_rows, min_p", lambda: sample_rows(*arguments, min_p_R=one)),
    ]
