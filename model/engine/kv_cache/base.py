"""The paged KV cache, and attention over it.

A block holds the keys and values of ``block_size`` positions (slots); a block table maps a sequence's
positions to blocks. ``attention`` prepares a step once, and the decoder calls the result for each
layer. This implementation runs on any torch device; ``cpu`` and ``gpu`` are faster on theirs.

Shape suffixes: T tokens of a step, H query heads, G key-value heads, D head dim, L positions of one
sequence, Q tokens of one span, N blocks, B slots of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.phi3v.configuration import Phi3VConfig
from model.phi3v.decoder import Attention
from model.phi3v.transfer import to_device


@dataclass(frozen=True)
class Span:
    """The tokens of one sequence in a step: positions ``start`` to ``end`` of its block table."""

    blocks: list[int]
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


class PagedCache(Protocol):
    """Keys and values of all layers, on one or several devices."""

    def attention(self, spans: list[Span]) -> Attention:
        """Prepare a step's attention over the packed tokens of ``spans``, in order."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's keys and values in every layer."""
        ...


class KVCache:
    """Storage for ``num_blocks`` blocks in every layer.

    Attributes:
        keys, values: ``(layers, N, G, B, D)``.
    """

    def __init__(
        self,
        config: Phi3VConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.device = device
        heads = config.num_key_value_heads or config.num_attention_heads
        head_dim = config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, num_blocks, heads, block_size, head_dim)
        # Not zeroed, so that the system provides memory only as sequences fill it.
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.keys)

    def attention(self, spans: list[Span]) -> Attention:
        """See ``PagedCache``."""
        return SdpaAttention(self, spans)

    def gather(
        self, layer: int, blocks: Tensor, length: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Copy a sequence's first keys and values into contiguous tensors, ``(G, L, D)`` each.

        Args:
            layer: which layer.
            blocks: the needed part of the sequence's block table, int64.
            length: number of positions.
            dtype: of the results.
        """

        def in_one_piece(stored_NGBD: Tensor) -> Tensor:
            gathered_GNBD = stored_NGBD[blocks].transpose(0, 1).to(dtype)
            return gathered_GNBD.flatten(1, 2)[:, :length]

        return in_one_piece(self.keys[layer]), in_one_piece(self.values[layer])

    def copy_block(self, source: int, target: int) -> None:
        """See ``PagedCache``."""
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]

    def slots(self, spans: list[Span]) -> tuple[np.ndarray, np.ndarray]:
        """Block and offset within it of every token of the spans, int64 ``(T,)``."""
        blocks, offsets = [], []
        for span in spans:
            position = np.arange(span.start, span.end)
            first = span.start // self.block_size
            table = np.array(span.blocks[first : (span.end - 1) // self.block_size + 1])
            blocks.append(table[position // self.block_size - first])
            offsets.append(position % self.block_size)
        return np.concatenate(blocks), np.concatenate(offsets)


class SdpaAttention:
    """A step's attention with torch's ``scaled_dot_product_attention``, sequence by sequence.

    Gathers each sequence's keys and values first. On the CPU it computes in float32, which is as fast
    there.
    """

    def __init__(self, cache: KVCache, spans: list[Span]) -> None:
        self._cache = cache
        self._spans = spans
        block, offset = cache.slots(spans)
        self._block_T = to_device(torch.from_numpy(block), cache.device)
        self._offset_T = to_device(torch.from_numpy(offset), cache.device)
        on_cpu = cache.device.type == "cpu"
        self._dtype = torch.float32 if on_cpu else cache.keys.dtype
        self._reads = [PrefillRead(cache, span, self._dtype) for span in spans]

    def __call__(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """See ``model.phi3v.decoder.Attention``."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._block_T, :, self._offset_T] = k_TGD.to(keys.dtype)
        values[self._block_T, :, self._offset_T] = v_TGD.to(values.dtype)
        at, outputs = 0, []
        for span, read in zip(self._spans, self._reads, strict=True):
            outputs.append(read(layer, q_THD[at : at + len(span)]))
            at += len(span)
        return torch.cat(outputs).to(q_THD.dtype)


class PrefillRead:
    """Causal attention of one span's queries over its sequence."""

    def __init__(self, cache: KVCache, span: Span, dtype: torch.dtype) -> None:
        self._cache = cache
        self._length = span.end
        self._dtype = dtype
        count = -(-span.end // cache.block_size)
        self._blocks = to_device(torch.tensor(span.blocks[:count]), cache.device)
        # Only later spans of several tokens need an explicit mask.
        self._causal = span.start == 0 and len(span) > 1
        self._mask_QL = None
        if span.start > 0 and len(span) > 1:
            query_Q = torch.arange(span.start, span.end, device=cache.device)
            self._mask_QL = torch.arange(span.end, device=cache.device) <= query_Q[:, None]

    def __call__(self, layer: int, q_QHD: Tensor) -> Tensor:
        """Attention output ``(Q, H, D)``."""
        keys_GLD, values_GLD = self._cache.gather(layer, self._blocks, self._length, self._dtype)
        output_HQD = scaled_dot_product_attention(
            q_QHD.to(self._dtype).transpose(0, 1)[None],
            keys_GLD[None],
            values_GLD[None],
            attn_mask=self._mask_QL,
            is_causal=self._causal,
            enable_gqa=q_QHD.shape[1] != keys_GLD.shape[0],
        )[0]
        return output_HQD.transpose(0, 1)
