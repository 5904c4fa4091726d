"""Keys and values of all sequences, and attention over them.

Slots (one position each) lie in blocks; a block table maps a sequence's positions to slots. The
attention of a step is made once (``attention``) and called by the decoder for each layer.

On the CPU keys and values are float32 whatever the weights are: decode attention in bfloat16 was
measured 2 to 3 times slower there.

Shape suffixes: T tokens of a step, H query heads, G key-value heads, D head dim, L positions of one
sequence, N tokens of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.engine.block_manager import BlockTable
from model.engine.config import EngineConfig
from model.phi3v.configuration import Phi3VConfig


@dataclass(frozen=True)
class Span:
    """The tokens of one sequence in a step: positions ``start`` to ``end`` of its block table."""

    block_table: BlockTable
    start: int
    end: int


class KVCache:
    """Storage for ``num_blocks * block_size`` positions in every layer."""

    def __init__(
        self, model_config: Phi3VConfig, config: EngineConfig, dtype: torch.dtype, device: str
    ) -> None:
        self.block_size = config.block_size
        self.device = device
        heads = model_config.num_key_value_heads or model_config.num_attention_heads
        head_dim = model_config.hidden_size // model_config.num_attention_heads
        shape = (
            model_config.num_hidden_layers,
            config.num_blocks * config.block_size,
            heads,
            head_dim,
        )
        # Not zeroed: memory is taken from the system only as sequences fill it.
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    def attention(self, spans: list[Span]) -> PagedAttention:
        """The attention of one step over the packed tokens of ``spans``, in order."""
        return PagedAttention(self, spans)

    def slots(self, block_table: BlockTable, start: int, end: int) -> Tensor:
        """Slots of positions ``start`` to ``end``, int64."""
        first_block = start // self.block_size
        table = torch.tensor(block_table.blocks[first_block : -(-end // self.block_size)])
        position = torch.arange(start, end)
        block = table[position // self.block_size - first_block]
        return (block * self.block_size + position % self.block_size).to(self.device)


class PagedAttention:
    """Attention of one step: writes the new keys and values, then reads each sequence's own."""

    def __init__(self, cache: KVCache, spans: list[Span]) -> None:
        self._cache = cache
        self._spans = spans
        self._new_slots_T = torch.cat([cache.slots(s.block_table, s.start, s.end) for s in spans])
        self._reads = [self._read(span) for span in spans]
        self._masks = [_causal_mask(span, cache.device) for span in spans]

    def _read(self, span: Span) -> slice | Tensor:
        """What selects the sequence's positions in the cache: a slice where it is one run."""
        if span.block_table.one_run:
            first = span.block_table.blocks[0] * self._cache.block_size
            return slice(first, first + span.end)
        return self._cache.slots(span.block_table, 0, span.end)

    def __call__(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """See ``model.phi3v.language.Attention``."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._new_slots_T] = k_TGD.to(keys.dtype)
        values[self._new_slots_T] = v_TGD.to(values.dtype)
        grouped = q_THD.shape[1] != keys.shape[1]
        output_THD = torch.empty(q_THD.shape, dtype=keys.dtype, device=q_THD.device)
        query_THD = q_THD.to(keys.dtype)
        at = 0
        for span, read, mask_NL in zip(self._spans, self._reads, self._masks, strict=True):
            until = at + span.end - span.start
            output_HND = scaled_dot_product_attention(
                query_THD[at:until].transpose(0, 1)[None],
                keys[read].transpose(0, 1)[None],
                values[read].transpose(0, 1)[None],
                attn_mask=mask_NL,
                is_causal=span.start == 0 and span.end > 1,
                enable_gqa=grouped,
            )[0]
            output_THD[at:until] = output_HND.transpose(0, 1)
            at = until
        return output_THD.to(q_THD.dtype)


def _causal_mask(span: Span, device: str) -> Tensor | None:
    """Mask for a chunk after the first, ``(N, L)``; the first and single tokens need none."""
    if span.start == 0 or span.end - span.start == 1:
        return None
    positions_N = torch.arange(span.start, span.end, device=device)
    return torch.arange(span.end, device=device)[None, :] <= positions_N[:, None]
