"""A cache of image embeddings; cached images skip decoding and the vision tower."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple
from weakref import WeakValueDictionary

from torch import Tensor

from model.phi3v.inputs.image_processing import EmbeddedImage


class _Entry(NamedTuple):
    embedding: Tensor
    num_pixels: int


class EmbeddingCache:
    """An LRU cache of embeddings by salted digest, up to ``max_bytes``; 0 disables it. Any thread.

    Embeddings lent to requests stay cached until the requests end, so that requests take no memory
    beyond the cache's.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._lent: WeakValueDictionary[bytes, EmbeddedImage] = WeakValueDictionary()
        self.num_bytes = 0
        self.num_hits = 0

    def get(self, key: bytes) -> Tensor | None:
        """Look up an embedding and mark it as recently used."""
        with self._lock:
            entry = self._find(key)
        return None if entry is None else entry.embedding

    def lend(self, salt: bytes, digest: bytes) -> EmbeddedImage | None:
        """Look up an image; its embedding stays cached as long as the result lives."""
        key = salt + digest
        with self._lock:
            entry = self._find(key)
            if entry is None:
                return None
            return self._lent.setdefault(key, EmbeddedImage(*entry, digest))

    def put(self, key: bytes, embedding: Tensor, num_pixels: int) -> None:
        """Add an embedding that is not cached yet, evicting old ones.

        It is not added if it does not fit beside those that are lent.

        Args:
            key: the image's digest after the salt of its requests.
            embedding: of the image.
            num_pixels: of the image.
        """
        with self._lock:
            lent_bytes = sum(image.embedding.nbytes for image in self._lent.values())
            if lent_bytes + embedding.nbytes > self._max_bytes:
                return
            self._entries[key] = _Entry(embedding, num_pixels)
            self.num_bytes += embedding.nbytes
            for oldest in list(self._entries):
                if self.num_bytes <= self._max_bytes:
                    return
                if oldest not in self._lent:
                    self.num_bytes -= self._entries.pop(oldest).embedding.nbytes

    def _find(self, key: bytes) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is not None:
            self.num_hits += 1
            self._entries.move_to_end(key)
        return entry
