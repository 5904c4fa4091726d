"""Runs the decoder on the chunks of a step.

Shape suffixes: T tokens of the step, E hidden size, H heads, G key-value heads, D head dim, S
sequences sampled, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.engine.kv_cache.base import PagedCache, Span
from model.engine.policy import Policy
from model.engine.scheduling.chunk import Chunk, sampled_tokens
from model.phi3v.decoder import Decoder
from model.phi3v.rope import LongRope
from model.phi3v.transfer import to_device

if TYPE_CHECKING:
    from model.engine.execution.cuda_graphs import DecodeGraphs


def make_runner(decoder: Decoder, cache: PagedCache, rope: LongRope, policy: Policy) -> Runner:
    """Create an engine's runner, with CUDA graphs if possible.

    Args:
        decoder: of the model.
        cache: the KV cache.
        rope: of the model.
        policy: of the engine.
    """
    graphs = None
    if decoder.fuses_attention and len(set(decoder.layer_devices)) == 1:
        # Only GPUs have what these modules import.
        from model.engine.execution.cuda_graphs import Size, make_decode_graphs
        from model.engine.kv_cache.gpu import GpuKVCache
        from model.phi3v.decoder_gpu import GpuDecoder

        assert isinstance(cache, GpuKVCache)
        assert isinstance(decoder, GpuDecoder)
        sizes = [Size(*size) for size in policy.graph_sizes]
        graphs = make_decode_graphs(decoder, cache, rope, sizes)
    return Runner(decoder, cache, rope, policy.fixed_rows, graphs)


class Runner:
    """The decoder with its KV cache.

    Args:
        fixed_rows: see ``Policy``; ignored if the decoder is batch invariant.
        graphs: CUDA graphs for decode steps, if any.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: PagedCache,
        rope: LongRope,
        fixed_rows: int = 0,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._rope = rope
        self._fixed_rows = 0 if decoder.batch_invariant else fixed_rows
        self._graphs = graphs
        self._device = decoder.device

    @property
    def graph_rows(self) -> tuple[int, ...]:
        """Numbers of sequences with CUDA graphs for one token each, ascending."""
        sizes = () if self._graphs is None else self._graphs.sizes
        return tuple(size.rows for size in sizes if size.tokens_per_row == 1)

    def guess_limit(self, rows: int) -> int | None:
        """Maximum number of tokens that each of ``rows`` sequences may guess; None if unlimited."""
        if self._graphs is not None:
            return self._graphs.longest_guess(rows)
        return None if self._device.type == "cpu" else 0

    def run(self, chunks: list[Chunk]) -> Tensor:
        """Compute the chunks; returns float32 logits ``(S, V)``, ``num_sampled`` rows per chunk."""
        if not self._fixed_rows:
            return self._compute(chunks, 0)
        single = [chunk for chunk in chunks if chunk.is_text_token]
        others = [[chunk] for chunk in chunks if not chunk.is_text_token]
        logits_V = {}
        for group in ([single] if single else []) + others:
            rows = self._fixed_rows if group is single else 0
            sampled = [chunk for chunk in group if chunk.num_sampled]
            for chunk, row_V in zip(sampled, self._compute(group, rows), strict=False):
                logits_V[chunk.sequence.key] = row_V
        found = [logits_V[chunk.sequence.key] for chunk in chunks if chunk.num_sampled]
        return torch.stack(found) if found else torch.empty(0)

    def _compute(self, chunks: list[Chunk], rows: int) -> Tensor:
        """Logits of the chunks that sample, computed in a batch padded to ``rows`` if not 0."""
        if self._graphs is not None and (logits_SV := self._graphs.run(chunks)) is not None:
            return logits_SV
        hidden_TE = self._embed(chunks)
        position_T = self._tensor([c.start + i for c in chunks for i in range(len(c))])
        regime_T = self._tensor([int(c.sequence.regime) for c in chunks for _ in range(len(c))])
        spans = [Span(c.sequence.block_table, c.start, c.start + len(c)) for c in chunks]
        attend = self._cache.attention(spans)
        sampled_S = self._tensor(sampled_tokens(chunks))
        if rows:
            count = len(hidden_TE)
            attend = _Padded(attend, count)
            hidden_TE, position_T, regime_T = (
                torch.cat([x, x[-1:].expand(rows - count, *x.shape[1:])])
                for x in (hidden_TE, position_T, regime_T)
            )
        cos_TD, sin_TD = self._rope.cos_sin(position_T, regime_T, self._decoder.dtype)
        hidden_TE = self._decoder(hidden_TE, cos_TD, sin_TD, attend)
        if rows:  # a fixed batch size for the head too
            return self._decoder.logits(hidden_TE)[sampled_S]
        return self._decoder.logits(hidden_TE[sampled_S])

    def _embed(self, chunks: list[Chunk]) -> Tensor:
        """Embeddings of the chunks' tokens, with image embeddings at image positions."""
        ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
        embedded_TE = self._decoder.embed(self._tensor(ids).clamp(min=0))
        row = 0
        for chunk in chunks:
            for image in chunk.sequence.images:
                first, end = max(chunk.start, image.start), min(chunk.end, image.end)
                if first < end:
                    at = row + first - chunk.start
                    embedded_TE[at : at + end - first] = image.embeddings(first, end)
            row += len(chunk)
        return embedded_TE

    def _tensor(self, values: list[int]) -> Tensor:
        return to_device(torch.tensor(values, dtype=torch.int64), self._device)


class _Padded:
    """Attention that skips the padding rows after the first ``count``; fused if ``attend`` is."""

    def __init__(self, attend: Any, count: int) -> None:
        self._attend = attend
        self._count = count

    def __call__(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        output_THD = torch.zeros_like(q_THD)
        real = slice(self._count)
        output_THD[real] = self._attend(layer, q_THD[real], k_TGD[real], v_TGD[real])
        return output_THD

    def fused(
        self, layer: int, qkv_TK: Tensor, cos_TD: Tensor, sin_TD: Tensor, heads: int
    ) -> Tensor:
        """See ``model.phi3v.decoder_gpu.FusedAttention``."""
        real = slice(self._count)
        output_TE = self._attend.fused(layer, qkv_TK[real], cos_TD[real], sin_TD[real], heads)
        padding = len(qkv_TK) - self._count
        return torch.cat([output_TE, output_TE.new_zeros(padding, output_TE.shape[1])])
