"""The KV cache on the CPU: single tokens together in one kernel, prefill by torch's function.

Shape suffixes as in ``kv_cache``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.cpu.attention import paged_attention
from model.cpu.jit import address
from model.engine.kv_cache import KVCache, PrefillRead, Span
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.language import Attention


class CpuKVCache(KVCache):
    """Float32 or bfloat16 storage, read by a compiled kernel."""

    def __init__(
        self,
        config: Phi3VConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(config, num_blocks, block_size, dtype, device)
        self.kernel = paged_attention(dtype is torch.bfloat16)

    def attention(self, spans: list[Span]) -> Attention:
        """See ``KVCache.attention``."""
        return CpuAttention(self, spans)


class CpuAttention:
    """Attention of one step; single tokens, whoever's they are, are attended in one call."""

    def __init__(self, cache: CpuKVCache, spans: list[Span]) -> None:
        self._cache = cache
        rows = [0]
        for span in spans:
            rows.append(rows[-1] + len(span))
        single = [(row, span) for row, span in zip(rows, spans, strict=False) if len(span) == 1]
        counts = [-(-span.end // cache.block_size) for _, span in single]
        blocks = [
            block
            for (_, span), count in zip(single, counts, strict=True)
            for block in span.blocks[:count]
        ]
        starts = np.cumsum([0, *counts])[:-1]
        block_T, offset_T = cache.slots(spans)
        self._arrays = {  # held here, by address in the records
            "block": block_T,
            "offset": offset_T,
            "table": np.array(blocks, dtype=np.int64),
            "row": np.array([row for row, _ in single], dtype=np.int64),
            "start": starts.astype(np.int64),
            "length": np.array([span.end for _, span in single], dtype=np.int64),
        }
        _, num_blocks, groups, block_size, head_dim = cache.keys.shape
        self._records = cache.kernel.records(
            tokens=rows[-1],
            singles=len(single),
            groups=groups,
            head_dim=head_dim,
            num_blocks=num_blocks,
            block_size=block_size,
            **{name: address(value) for name, value in self._arrays.items()},
        )
        self._prefills = [
            (slice(row, row + len(span)), PrefillRead(cache, span, torch.float32))
            for row, span in zip(rows, spans, strict=False)
            if len(span) > 1
        ]

    def __call__(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """See ``model.phi3v.language.Attention``."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        query_THD = q_THD.float().contiguous()
        new_keys, new_values = k_TGD.to(keys.dtype), v_TGD.to(keys.dtype)
        new_keys, new_values = new_keys.contiguous(), new_values.contiguous()
        output_THD = torch.empty(q_THD.shape)
        records = self._records
        records["heads"] = q_THD.shape[1]
        records["q"], records["output"] = address(query_THD), address(output_THD)
        records["k"], records["v"] = address(new_keys), address(new_values)
        records["keys"], records["values"] = address(keys), address(values)
        self._cache.kernel.run(records)
        for rows, read in self._prefills:
            output_THD[rows] = read(layer, query_THD[rows])
        return output_THD.to(q_THD.dtype)
