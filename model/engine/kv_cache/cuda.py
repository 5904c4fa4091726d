"""The KV cache on a GPU: all sequences of a step in one call of torch's paged attention per layer.

``torch.nn.attention.varlen.varlen_attn`` reads the blocks where they lie. Which GPUs, dtypes and
sizes it supports is for it to say: ``unsupported_reason`` asks it before the cache is made.

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

BLOCK_SIZE = 256  # FlashAttention 2, which varlen_attn is, pages memory in multiples of this
TOLERANCE = 0.03  # several roundings to bfloat16; a key misread or left out is far beyond it


class VarlenAttention(Protocol):
    """The signature of ``torch.nn.attention.varlen.varlen_attn``, as far as it is used here."""

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
    """Torch's paged attention; ImportError if this torch has none."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


class CudaKVCache(KVCache):
    """Storage as ``varlen_attn`` reads it, with one block more than the engine gives away.

    Args:
        varlen_attn: torch's function, or one like it.

    The others are as for ``KVCache``.

    Attributes:
        scratch_block: belongs to no sequence; rows that only fill a batch up write there.
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
        """The attention of a step with one token per sequence, from tensors on the device alone.

        Nothing of it depends on values that the host would have to know, so that it can be part of
        a CUDA graph.

        Args:
            position_S: int64 positions of the tokens.
            table_SW: int64 block tables; what lies beyond a sequence's blocks is not read.
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
    """Attention of one step, all sequences in one call per layer.

    Args:
        cache: where keys and values are stored.
        slot_T: int64 slots of the tokens, counted through all blocks.
        table_SW: int32 block tables.
        length_S: int32 positions of each sequence, those of this step among them.
        query_start: int32 ``(S + 1,)``, where each sequence's tokens start.
        max_query: most tokens of one sequence.
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
        # FlashAttention 2 wants starts of the keys as well, though the block tables say it all.
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
            window_size=(-1, 0),  # causal, with each sequence's last token at its last position
            enable_gqa=q_THD.shape[1] != keys_NBGD.shape[2],
            seqused_k=self._length_S,
            block_table=self._table_SW,
            # Splitting a sequence's keys would fill a GPU better at small batches, but loses the
            # rows of all sequences but the first (pytorch issue 194167). Not splitting also makes
            # the results of a sequence the same bits in any batch.
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
    """Why ``varlen_attn`` is of no use for a model on a device; None if it is.

    Two sequences with scattered blocks are prefilled, continued, and decoded, and all results
    compared with those of the generic cache.
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
        for cache in (generic, paged):  # as memory may be found: what is not written must not count
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
            if not worst <= TOLERANCE:  # NaN is not
                return f"its results are off by {worst:.3g}"
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _random_inputs(
    config: Phi3VConfig, tokens: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Queries, keys and values of a layer."""
    heads = config.num_attention_heads
    groups, head_dim = config.num_key_value_heads or heads, config.hidden_size // heads
    generator = torch.Generator().manual_seed(tokens)
    return [
        torch.randn(tokens, count, head_dim, generator=generator).to(device, dtype)
        for count in (heads, groups, groups)
    ]
