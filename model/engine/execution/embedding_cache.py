"""A cache of image embeddings; cached images skip the vision tower."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor


class EmbeddingCache:
    """An LRU cache of embeddings by digest, up to ``max_bytes``; 0 disables it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._embeddings: OrderedDict[bytes, Tensor] = OrderedDict()
        self.num_bytes = 0
        self.num_hits = 0

    def get(self, digest: bytes) -> Tensor | None:
        """Look up an embedding and mark it as recently used."""
        embedding = self._embeddings.get(digest)
        if embedding is not None:
            self.num_hits += 1
            self._embeddings.move_to_end(digest)
        return embedding

    def put(self, digest: bytes, embedding: Tensor) -> None:
        """Add an embedding that is not cached yet, evicting old ones; too large ones are not added."""
        if embedding.nbytes > self._max_bytes:
            return
        self._embeddings[digest] = embedding
        self.num_bytes += embedding.nbytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._embeddings.popitem(last=False)
            self.num_bytes -= oldest.nbytes
