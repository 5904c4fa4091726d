"""The name of a block's content: everything that its keys and values depend on.

Each hash covers the block's tokens and, through its predecessor's hash, all tokens before; the
digest of the image wherever its positions begin; the rope regime; and the salt, which keeps those
apart who must not learn from a faster answer what others have asked. Sequences with equal hashes can
share the block.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from model.phi3v.rope import RopeRegime


def salt_digest(salt: str) -> bytes:
    """Of a length that nobody who chooses the salt can choose, as what follows it in a hash must be."""
    return hashlib.sha256(salt.encode()).digest()


@dataclass(frozen=True)
class ImageSpan:
    """Which image stands at positions ``start`` to ``end``; its digest is salted."""

    start: int
    end: int
    digest: bytes


def prefix_hashes(
    known: list[bytes],
    token_ids: Sequence[int],
    image: ImageSpan | None,
    regime: RopeRegime,
    salt: bytes,
    block_size: int,
    count: int,
) -> list[bytes]:
    """Hashes of the first ``count`` full blocks.

    Args:
        known: hashes of the first blocks, from an earlier call for the same sequence and regime;
            extended in place.
        token_ids: of the sequence, at least ``count * block_size``.
        image: where its image stands, and which.
        regime: of the sequence.
        salt: of its request, by ``salt_digest``.
        block_size: tokens in a block.
        count: how many hashes.
    """
    for index in range(len(known), count):
        start, end = index * block_size, (index + 1) * block_size
        block = hashlib.sha256(known[-1] if known else bytes([regime]) + salt)
        block.update(array("q", token_ids[start:end]).tobytes())
        if image is not None and image.start < end and start < image.end:
            block.update(image.digest)
        known.append(block.digest())
    return known[:count]
