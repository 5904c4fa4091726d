"""The KV cache on a GPU: one call of torch's paged attention per layer for all sequences.

``torch.nn.attention.varlen.varlen_attn`` reads the blocks in place. ``unsupported_reason`` tests whether
it supports a GPU, dtype and sizes before the cache is created.

Shape suffixes as in ``base``; S sequences of a step, W blocks in the widest block table.
"""

from __future__ import annotations

import copy
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from model.engine.kv_cache.base import KVCache, Span
from model.phi3v.checkpoint import first_line
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.decoder import Attention
from model.phi3v.transfer import to_device

BLOCK_SIZE = 256  # varlen_attn is FlashAttention 2, whose pages are multiples of this
TOLERANCE = 0.03  # allows bfloat16 rounding; a wrong or missing key exceeds it by far


class VarlenAttention(Protocol):
    """The signature of ``torch.nn.attention.varlen.varlen_attn``, as used here."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        *,
        window_size: tuple[int, int],
        enable_gqa: bool,
        seqused_k: Tensor,
        block_table: Tensor,
        num_splits: int,
    ) -> Any:
        """Attention output ``(T, H, D)``; keys and values are ``(N, B, G, D)``."""
        ...


def find_varlen_attn() -> VarlenAttention:
    """Torch's paged attention; raises ImportError if this version lacks it."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


class CudaKVCache(KVCache):
    """Storage in ``varlen_attn``'s layout, with an additional scratch block.

    Args:
        varlen_attn: torch's function, or a compatible one.

    The others are as for ``KVCache``.

    Attributes:
        scratch_block: belongs to no sequence; padding rows write there.
    """

    heads_first = False

    def __init__(
        self,
        config: Phi3VConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        varlen_attn: VarlenAttention,
    ) -> None:
        super().__init__(config, num_blocks + 1, block_size, dtype, device)
        self.scratch_block = num_blocks
        self.varlen_attn = varlen_attn

    def attention(self, spans: list[Span]) -> Attention:
        """See ``PagedCache``."""
        block_T, offset_T = self.slots(spans)
        counts = [-(-span.end // self.block_size) for span in spans]
        table_SW = np.full((len(spans), max(counts)), self.scratch_block)
        for row_W, span, count in zip(table_SW, spans, counts, strict=True):
            row_W[:count] = span.blocks[:count]
        lengths = [len(span) for span in spans]
        return PagedAttention(
            self,
            slot_T=self._on_device(block_T * self.block_size + offset_T),
            table_SW=self._on_device(table_SW.astype(np.int32)),
            length_S=self._on_device(np.array([span.end for span in spans], np.int32)),
            query_start=self._on_device(np.array([0, *accumulate(lengths)], np.int32)),
            max_query=max(lengths),
        )

    def decode_attention(self, position_S: Tensor, table_SW: Tensor) -> Attention:
        """Prepare the attention of a step with one token per sequence, only from device tensors.

        Does not depend on values on the host, so it can be part of a CUDA graph.

        Args:
            position_S: int64 positions of the tokens.
            table_SW: int64 block tables; entries beyond a sequence's blocks are not read.
        """
        block_S = table_SW.gather(1, position_S[:, None] // self.block_size)[:, 0]
        count = len(position_S)
        return PagedAttention(
            self,
            slot_T=block_S * self.block_size + position_S % self.block_size,
            table_SW=table_SW.to(torch.int32),
            length_S=(position_S + 1).to(torch.int32),
            query_start=torch.arange(count + 1, dtype=torch.int32, device=self.device),
            max_query=1,
        )

    def _on_device(self, values: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(values), self.device)


class PagedAttention:
    """A step's attention, with one call per layer for all sequences.

    Args:
        cache: stores keys and values.
        slot_T: int64 slots of the tokens, ``block * block_size + offset``.
        table_SW: int32 block tables.
        length_S: int32 length of each sequence, including this step's tokens.
        query_start: int32 ``(S + 1,)``, start of each sequence's tokens.
        max_query: maximum number of tokens of a sequence.
    """

    def __init__(
        self,
        cache: CudaKVCache,
        slot_T: Tensor,
        table_SW: Tensor,
        length_S: Tensor,
        query_start: Tensor,
        max_query: int,
    ) -> None:
        self._cache = cache
        self._slot_T = slot_T
        self._table_SW = table_SW
        self._length_S = length_S
        self._query_start = query_start
        self._max_query = max_query
        self._max_key = table_SW.shape[1] * cache.block_size
        # FlashAttention 2 requires key starts too, although block tables make them redundant.
        count = torch.arange(len(query_start), dtype=torch.int32, device=cache.device)
        self._key_start = count * self._max_key

    def __call__(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """See ``model.phi3v.decoder.Attention``."""
        keys_NBGD, values_NBGD = self._cache.keys[layer], self._cache.values[layer]
        keys_NBGD.flatten(0, 1)[self._slot_T] = k_TGD.to(keys_NBGD.dtype)
        values_NBGD.flatten(0, 1)[self._slot_T] = v_TGD.to(values_NBGD.dtype)
        output_THD: Tensor = self._cache.varlen_attn(
            q_THD.to(keys_NBGD.dtype),
            keys_NBGD,
            values_NBGD,
            self._query_start,
            self._key_start,
            self._max_query,
            self._max_key,
            window_size=(-1, 0),  # causal, aligned to each sequence's last position
            enable_gqa=q_THD.shape[1] != keys_NBGD.shape[2],
            seqused_k=self._length_S,
            block_table=self._table_SW,
            # Splitting keys would use a GPU better at small batch sizes, but returns wrong rows for
            # all sequences but the first (pytorch issue 194167). Without splitting, results are
            # also bit-identical regardless of batching.
            num_splits=1,
        )
        return output_THD.to(q_THD.dtype)


@torch.inference_mode()
def unsupported_reason(
    config: Phi3VConfig,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    varlen_attn: VarlenAttention,
) -> str | None:
    """Why ``varlen_attn`` does not support a model on a device; None if it does.

    Prefills, continues and decodes two sequences with scattered blocks, and compares all results with
    the generic cache's.
    """
    config = copy.copy(config)
    config.num_hidden_layers = 1
    sizes = (config, 4, block_size, dtype, device)
    first, second = [3, 0, 2], [1]
    end = 2 * block_size + 9
    steps = [
        [Span(first, 0, block_size + 5), Span(second, 0, 3)],
        [Span(second, 3, 4), Span(first, block_size + 5, end)],
        [Span(first, end, end + 1), Span(second, 4, 5)],
    ]
    try:
        generic, paged = KVCache(*sizes), CudaKVCache(*sizes, varlen_attn)
        for cache in (generic, paged):  # unwritten memory must not influence results
            cache.keys.fill_(torch.nan)
            cache.values.fill_(torch.nan)
        for spans in steps:
            q_THD, k_TGD, v_TGD = _random_inputs(config, sum(map(len, spans)), dtype, device)
            expected_THD = generic.attention(spans)(0, q_THD, k_TGD, v_TGD).float()
            found_THD = paged.attention(spans)(0, q_THD, k_TGD, v_TGD).float()
            if found_THD.shape != expected_THD.shape:
                return f"its result has the wrong shape {tuple(found_THD.shape)}"
            wrong_THD = (found_THD - expected_THD).abs() / (1 + expected_THD.abs())
            worst = float(wrong_THD.max())
            if not worst <= TOLERANCE:  # also true for NaN
                return f"its results are off by {worst:.3g}"
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _random_inputs(
    config: Phi3VConfig, tokens: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Random queries, keys and values of a layer."""
    heads = config.num_attention_heads
    groups, head_dim = config.num_key_value_heads or heads, config.hidden_size // heads
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(tokens, count, head_dim, generator=generator).to(device, dtype)
        for count in (heads, groups, groups)
    ]
