"""Runs the network on a step's chunks: the vision tower for new images, then the decoder.

Shape suffixes: T tokens of the step, E hidden size, S sequences sampled, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.engine.kv_cache import KVCache, Span
from model.engine.scheduler import Chunk
from model.engine.sequence import Sequence
from model.phi3v import language
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.rope import LongRope


class Runner:
    """The network with its KV cache."""

    def __init__(self, model: Phi3VForCausalLM, cache: KVCache, rope: LongRope) -> None:
        self._model = model
        self._cache = cache
        self._rope = rope
        weight = model.model.embed_tokens.weight
        self._device, self._dtype = weight.device, weight.dtype

    def embed_image(self, sequence: Sequence) -> None:
        """Run the vision tower on the sequence's image and let go of its pixels."""
        assert sequence.image is not None
        (sequence.image_embedding,) = self._model.model.vision_embed_tokens(
            [sequence.image.pixels], [sequence.image.grid]
        )
        sequence.image = None

    def run(self, chunks: list[Chunk]) -> Tensor:
        """Compute the chunks; returns float32 logits ``(S, V)`` of those that sample, in order."""
        hidden_TE = torch.cat([self._embed(chunk) for chunk in chunks])
        position_T = torch.cat([torch.arange(c.start, c.end) for c in chunks]).to(self._device)
        regime_T = torch.cat(
            [torch.full((c.end - c.start,), int(c.sequence.regime)) for c in chunks]
        ).to(self._device)
        cos_TD, sin_TD = self._rope.cos_sin(position_T, regime_T, self._dtype)
        attend = self._cache.attention(
            [Span(c.sequence.block_table, c.start, c.end) for c in chunks]
        )
        hidden_TE = language.decode(self._model, hidden_TE, cos_TD, sin_TD, attend)
        last, sampled = -1, []
        for chunk in chunks:
            last += chunk.end - chunk.start
            if chunk.samples:
                sampled.append(last)
        return language.logits(self._model, hidden_TE[sampled])

    def _embed(self, chunk: Chunk) -> Tensor:
        """Embeddings of a chunk's tokens, the image's at its positions."""
        sequence = chunk.sequence
        ids = torch.tensor(sequence.token_ids[chunk.start : chunk.end], device=self._device)
        embedded_TE = self._model.model.embed_tokens(ids.clamp(min=0))
        if sequence.image_embedding is not None:
            first = max(chunk.start, sequence.image_start)
            end = min(chunk.end, sequence.image_start + len(sequence.image_embedding))
            if first < end:
                embedded_TE[first - chunk.start : end - chunk.start] = sequence.image_embedding[
                    first - sequence.image_start : end - sequence.image_start
                ]
        return embedded_TE
