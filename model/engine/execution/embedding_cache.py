"""Image embeddings by digest, so that an image seen before skips the vision tower."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor


class EmbeddingCache:
    """The most recently used embeddings, up to a number of bytes; 0 keeps none."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._embeddings: OrderedDict[bytes, Tensor] = OrderedDict()
        self.num_bytes = 0
        self.num_hits = 0

    def get(self, digest: bytes) -> Tensor | None:
        """The embedding of the image with this digest, counted as used now."""
        embedding = self._embeddings.get(digest)
        if embedding is not None:
            self.num_hits += 1
            self._embeddings.move_to_end(digest)
        return embedding

    def put(self, digest: bytes, embedding: Tensor) -> None:
        """Keep an embedding that is not there yet, if it fits at all, for others less used."""
        if embedding.nbytes > self._max_bytes:
            return
        self._embeddings[digest] = embedding
        self.num_bytes += embedding.nbytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._embeddings.popitem(last=False)
            self.num_bytes -= oldest.nbytes
