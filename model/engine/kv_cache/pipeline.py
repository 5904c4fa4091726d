"""The KV cache of a model on several GPUs: one cache per GPU.

Shape suffixes as in ``base``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from model.engine.kv_cache.base import KVCache, Span
from model.phi3v.decoder import Attention


class PipelineKVCache:
    """See ``kv_cache.base.PagedCache``.

    Args:
        stages: the caches, in order of layers.
    """

    def __init__(self, stages: Sequence[KVCache]) -> None:
        self.stages = stages

    def attention(self, spans: list[Span]) -> Attention:
        """See ``PagedCache``."""
        layers = []
        for stage in self.stages:
            attend = stage.attention(spans)
            layers += [(attend, layer) for layer in range(len(stage.keys))]
        return _PipelineAttention(layers)

    def copy_block(self, source: int, target: int) -> None:
        """See ``PagedCache``."""
        for stage in self.stages:
            stage.copy_block(source, target)


class _PipelineAttention:
    """A step's attention; maps each layer to its stage and its index there."""

    def __init__(self, layers: list[tuple[Attention, int]]) -> None:
        self._layers = layers

    def __call__(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        """See ``model.phi3v.decoder.Attention``."""
        attend, number = self._layers[layer]
        return attend(number, q_THD, k_TGD, v_TGD)
