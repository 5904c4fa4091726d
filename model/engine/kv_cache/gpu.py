"""The KV cache on a GPU, read by Triton kernels.

Sequences with few tokens in a step (decoding, verifying guesses) read their blocks in place. Longer
chunks of prompts are computed by the vendor's attention: on their own keys and values if they begin a
prompt, else on the sequence's keys and values, gathered from its blocks.

Shape suffixes: T tokens of a step, S sequences of a step, W blocks in the longest block table, H query
heads, G key-value heads, D head dim, N blocks, B slots of a block, L positions of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy as np
import torch
from torch import Tensor

from model.engine.kv_cache.base import Span
from model.engine.kv_cache.block_tables import BlockTables
from model.engine.kv_cache.prefill import Attend, Prefill
from model.gpu.paged_decode import MAX_QUERY, DecodeScratch, paged_decode
from model.gpu.rope_store import BLOCK, split_rope_store
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.transfer import to_device

LEAST_QUERIES = 256  # sequences times tokens that can read in place, even with few sequences


@dataclass(frozen=True)
class PagedReads:
    """Which sequences read their blocks in place, as device tensors.

    Attributes:
        table_SW: int32 block tables.
        length_S: int32 lengths including this step's tokens; 0 for sequences that do not take part.
        start_S: int32 ``(S + 1,)``, first token of each sequence; None if each has one token.
        max_query: maximum number of tokens of a sequence that takes part.
    """

    table_SW: Tensor
    length_S: Tensor
    start_S: Tensor | None
    max_query: int


@dataclass(frozen=True)
class PromptReads:
    """Consecutive spans that the vendor's attention computes in one call.

    Attributes:
        tokens: of the step.
        attend: the attention.
        blocks: of the one sequence that continues an earlier chunk; None if all begin their prompts.
        length: of that sequence, including this step's tokens.
    """

    tokens: slice
    attend: Attend
    blocks: Tensor | None
    length: int


class GpuKVCache:
    """Storage for ``num_blocks`` blocks in every layer; see ``kv_cache.base.PagedCache``.

    Args:
        config: of the model.
        num_blocks: number of blocks of 16 slots.
        dtype: of keys and values.
        device: a GPU, or the CPU for Triton's interpreter.
        rows: maximum number of sequences in a step.
        max_blocks: maximum number of blocks of a sequence.
        prefill: the vendor's attention.

    Attributes:
        blocks: ``(layers, N, 2, G, B, D)``, keys then values.
        tables: the block tables.
    """

    def __init__(
        self,
        config: Phi3VConfig,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        rows: int,
        max_blocks: int,
        prefill: Prefill,
    ) -> None:
        heads = config.num_attention_heads
        groups = config.num_key_value_heads or heads
        head_dim = config.hidden_size // heads
        shape = (config.num_hidden_layers, num_blocks, 2, groups, BLOCK, head_dim)
        self.device = device
        self.block_size = BLOCK
        self.blocks = torch.empty(shape, dtype=dtype, device=device)
        self.tables = BlockTables(rows, max_blocks, device)
        self._queries = max(rows, LEAST_QUERIES)
        self.scratch = DecodeScratch.allocate(self._queries, 1, heads, head_dim, max_blocks, device)
        self._heads, self._prefill = heads, prefill

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.blocks)

    def attention(self, spans: list[Span]) -> GpuAttention:
        """See ``PagedCache``. Each span's blocks must be the sequence's own list."""
        starts = [0, *accumulate(map(len, spans))]
        rows = self.tables.rows_of([span.blocks for span in spans])
        short = min(MAX_QUERY, self._queries // len(spans))
        # Short spans read in place; the others get length 0, so that the kernel skips them.
        lengths = [span.end if len(span) <= short else 0 for span in spans]
        max_query = max((len(span) for span in spans if len(span) <= short), default=0)
        numbers = np.concatenate([rows, lengths, starts, self._slots(spans)]).astype(np.int32)
        count = len(spans)
        row_S, length_S, start_S, slot_T = to_device(torch.from_numpy(numbers), self.device).split(
            [count, count, count + 1, starts[-1]]
        )
        paged = None
        if max_query:
            paged = PagedReads(self.tables.rows(row_S), length_S, start_S, max_query)
        return GpuAttention(self, slot_T, paged, list(self._prompts(spans, starts, short)))

    def new_output(self, tokens: int) -> Tensor:
        """Zeros for attention's output, ``(tokens, H, D)``."""
        shape = (tokens, self._heads, self.blocks.shape[-1])
        return self.blocks.new_zeros(shape)

    def copy_block(self, source: int, target: int) -> None:
        """See ``PagedCache``."""
        self.blocks[:, target] = self.blocks[:, source]

    def _slots(self, spans: list[Span]) -> np.ndarray:
        """The slot of each token, ``block * 16 + offset``."""
        slots = []
        for span in spans:
            position = np.arange(span.start, span.end)
            first = span.start // BLOCK
            blocks = np.array(span.blocks[first : -(-span.end // BLOCK)])
            slots.append(blocks[position // BLOCK - first] * BLOCK + position % BLOCK)
        return np.concatenate(slots)

    def _prompts(self, spans: list[Span], starts: list[int], short: int) -> Iterator[PromptReads]:
        """Group the long spans: those that begin prompts together, the others one by one."""

        def kind(index: int) -> int:
            span = spans[index]
            if len(span) <= short:
                return -1
            return 0 if span.start == 0 else 1 + index

        for found, group in groupby(range(len(spans)), kind):
            if found < 0:
                continue
            indices = list(group)
            members = [spans[index] for index in indices]
            queries, keys = [len(span) for span in members], [span.end for span in members]
            blocks = None
            if found > 0:
                needed = torch.tensor(members[0].blocks[: -(-keys[0] // BLOCK)])
                blocks = to_device(needed, self.device)
            yield PromptReads(
                slice(starts[indices[0]], starts[indices[-1] + 1]),
                self._prefill(queries, keys, self.device),
                blocks,
                keys[0],
            )


class GpuAttention:
    """A step's attention.

    Args:
        cache: stores keys and values.
        slot_T: int32 slots of the tokens; negative for tokens that are not stored.
        paged: sequences that read their blocks in place, if any.
        prompts: the others.
        output_THD: where to write the results of ``paged``; by default a new tensor.
    """

    def __init__(
        self,
        cache: GpuKVCache,
        slot_T: Tensor,
        paged: PagedReads | None,
        prompts: list[PromptReads],
        output_THD: Tensor | None = None,
    ) -> None:
        self._cache = cache
        self._slot_T = slot_T
        self._paged = paged
        self._prompts = prompts
        self._output_THD = output_THD
        self._copies = any(prompt.blocks is None for prompt in prompts)

    def fused(
        self, layer: int, qkv_TK: Tensor, cos_TD: Tensor, sin_TD: Tensor, heads: int
    ) -> Tensor:
        """See ``model.phi3v.decoder_gpu.FusedAttention``."""
        stored = self._cache.blocks[layer]
        groups, head_dim = stored.shape[2], stored.shape[4]
        q_THD = qkv_TK.new_empty(len(qkv_TK), heads, head_dim)
        k_TGD, v_TGD = None, None
        if self._copies:
            k_TGD, v_TGD = (qkv_TK.new_empty(len(qkv_TK), groups, head_dim) for _ in range(2))
        split_rope_store(qkv_TK, cos_TD, sin_TD, self._slot_T, stored, q_THD, k_TGD, v_TGD)
        return self._read(stored, q_THD, k_TGD, v_TGD).flatten(1)

    def __call__(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """See ``model.phi3v.decoder.Attention``."""
        stored = self._cache.blocks[layer]
        block_T, offset_T = self._slot_T // BLOCK, self._slot_T % BLOCK
        stored[block_T, 0, :, offset_T] = k_TGD
        stored[block_T, 1, :, offset_T] = v_TGD
        return self._read(stored, q_THD, k_TGD, v_TGD)

    def _read(
        self, stored: Tensor, q_THD: Tensor, k_TGD: Tensor | None, v_TGD: Tensor | None
    ) -> Tensor:
        output_THD = torch.empty_like(q_THD) if self._output_THD is None else self._output_THD
        if self._paged is not None:
            paged = self._paged
            paged_decode(
                q_THD,
                stored,
                paged.table_SW,
                paged.length_S,
                paged.start_S,
                paged.max_query,
                self._cache.scratch,
                output_THD,
            )
        for prompt in self._prompts:
            tokens = prompt.tokens
            if prompt.blocks is None:
                assert k_TGD is not None
                assert v_TGD is not None
                keys, values = k_TGD[tokens], v_TGD[tokens]
            else:
                keys, values = _gather(stored, prompt.blocks, prompt.length)
            output_THD[tokens] = prompt.attend(q_THD[tokens], keys, values)
        return output_THD


def _gather(stored: Tensor, blocks: Tensor, length: int) -> list[Tensor]:
    """A sequence's keys and values, contiguous, ``(L, G, D)`` each."""
    # One after the other, because long sequences take gigabytes.
    return [
        stored[blocks, kind].transpose(1, 2).flatten(0, 1)[:length]  # blocks are (B, G, D) then
        for kind in (0, 1)
    ]
