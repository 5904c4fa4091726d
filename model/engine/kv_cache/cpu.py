"""The KV cache on the CPU: a compiled kernel computes the attention of a whole step.

Shape suffixes as in ``base``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from model.cpu.attention import paged_attention
from model.cpu.blocks import BLOCK
from model.cpu.compiler.jit import address
from model.engine.kv_cache.base import KVCache, Span
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.decoder import Attention


def unsupported_reason(config: Phi3VConfig, block_size: int) -> str | None:
    """Why the kernel does not support a model; None if it does."""
    head_dim = config.hidden_size // config.num_attention_heads
    if block_size != BLOCK or head_dim % BLOCK:
        return f"blocks of {block_size} and heads of {head_dim} are not multiples of {BLOCK}"
    return None


class CpuKVCache(KVCache):
    """Float32 or bfloat16 storage, read by a compiled kernel.

    Attributes:
        keys: ``(layers, N, G, D, B)``: a block's keys are transposed.
    """

    def __init__(
        self,
        config: Phi3VConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(config, num_blocks, block_size, dtype, device)
        layers, blocks, groups, slots, head_dim = self.keys.shape
        self.keys = self.keys.view(layers, blocks, groups, head_dim, slots)
        self.kernel = paged_attention(dtype is torch.bfloat16)

    def attention(self, spans: list[Span]) -> Attention:
        """See ``PagedCache``."""
        return CpuAttention(self, spans)


class CpuAttention:
    """A step's attention in one kernel call per layer."""

    def __init__(self, cache: CpuKVCache, spans: list[Span]) -> None:
        self._cache = cache
        tables = [span.blocks[: -(-span.end // BLOCK)] for span in spans]
        starts = [0]
        for table in tables:
            starts.append(starts[-1] + len(table))
        tiles = list(tiles_of(spans, starts))
        block_T, offset_T = cache.slots(spans)
        self._arrays = {  # kept alive here, because the records hold addresses
            "block": block_T,
            "offset": offset_T,
            "table": np.array([block for table in tables for block in table], np.int64),
            **{
                name: np.array(column, np.int64)
                for name, column in zip(
                    ("tile_row", "tile_size", "tile_start", "tile_length"),
                    zip(*tiles, strict=True),
                    strict=True,
                )
            },
        }
        layers, num_blocks, groups, head_dim, _ = cache.keys.shape
        self._records = cache.kernel.records(
            layers,
            tokens=len(block_T),
            tiles=len(tiles),
            groups=groups,
            head_dim=head_dim,
            num_blocks=num_blocks,
            **{name: address(value) for name, value in self._arrays.items()},
        )
        offsets = np.arange(layers) * cache.keys[0].nbytes
        self._records["keys"] = address(cache.keys) + offsets
        self._records["values"] = address(cache.values) + offsets

    def bind(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, output_THD: Tensor) -> np.ndarray:
        """The kernel's records, one per layer, set to use these arrays."""
        records = self._records
        records["heads"] = q_THD.shape[1]
        records["q"], records["output"] = address(q_THD), address(output_THD)
        records["k"], records["v"] = address(k_TGD), address(v_TGD)
        return records

    def __call__(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """See ``model.phi3v.decoder.Attention``."""
        dtype = self._cache.keys.dtype
        query_THD = q_THD.float().contiguous()
        new_keys, new_values = k_TGD.to(dtype).contiguous(), v_TGD.to(dtype).contiguous()
        output_THD = torch.empty(q_THD.shape)
        self._cache.kernel.run(self.bind(query_THD, new_keys, new_values, output_THD), layer)
        return output_THD.to(q_THD.dtype)


def tiles_of(spans: list[Span], starts: list[int]) -> Iterator[tuple[int, int, int, int]]:
    """Row, size, table start and length of each tile; see ``paged_attention``."""
    row = 0
    for span, start in zip(spans, starts, strict=False):
        position = span.start
        while position < span.end:
            left = span.end - position
            size = 8 if left >= 8 else 4 if left >= 4 else 1
            yield row, size, start, position + 1
            row += size
            position += size
