"""The KV cache of a model on several GPUs: one cache per GPU.

Shape suffixes as in ``base``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from model.engine.kv_cache.base import PagedCache, Span


class Stage(PagedCache, Protocol):
    """A cache on one GPU."""

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        ...


class PipelineKVCache:
    """See ``kv_cache.base.PagedCache``.

    Args:
        stages: the caches, in order of layers.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages

    def attention(self, spans: list[Span]) -> _PipelineAttention:
        """See ``PagedCache``."""
        layers = []
        for stage in self.stages:
            attend = stage.attention(spans)
            layers += [(attend, layer) for layer in range(stage.num_layers)]
        return _PipelineAttention(layers)

    def copy_block(self, source: int, target: int) -> None:
        """See ``PagedCache``."""
        for stage in self.stages:
            stage.copy_block(source, target)


class _PipelineAttention:
    """A step's attention; maps each layer to its stage and its index there."""

    def __init__(self, layers: list[tuple[Any, int]]) -> None:
        self._layers = layers

    def __call__(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """See ``model.phi3v.decoder.Attention``."""
        attend, number = self._layers[layer]
        return attend(number, q_THD, k_TGD, v_TGD)

    def fused(
        self, layer: int, qkv_TK: Tensor, cos_TD: Tensor, sin_TD: Tensor, heads: int
    ) -> Tensor:
        """See ``model.phi3v.decoder_gpu.FusedAttention``."""
        attend, number = self._layers[layer]
        return attend.fused(number, qkv_TK, cos_TD, sin_TD, heads)
