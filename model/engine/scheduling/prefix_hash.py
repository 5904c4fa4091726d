"""Hashes that identify a block's content: everything that its keys and values depend on.

A hash covers the block's tokens and, through the previous block's hash, all tokens before; the digest of
each image at its positions; the rope regime; and the cache salt, which keeps callers from learning
others' prompts through timing. Sequences with equal hashes share the block.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from model.engine.scheduling.placed_image import PlacedImage
from model.phi3v.rope import RopeRegime


def salt_digest(salt: str) -> bytes:
    """Digest of a salt; its fixed length keeps salts from imitating the data hashed after it."""
    return hashlib.sha256(salt.encode()).digest()


def prefix_hashes(
    known: list[bytes],
    token_ids: Sequence[int],
    images: Sequence[PlacedImage],
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
        images: its images, in order of position.
        regime: of the sequence.
        salt: of its request, from ``salt_digest``.
        block_size: tokens in a block.
        count: number of hashes.
    """
    at = 0  # the first image that does not end before the block
    for index in range(len(known), count):
        start, end = index * block_size, (index + 1) * block_size
        block = hashlib.sha256(known[-1] if known else bytes([regime]) + salt)
        block.update(array("q", token_ids[start:end]).tobytes())
        while at < len(images) and images[at].end <= start:
            at += 1
        overlapping = at
        while overlapping < len(images) and images[overlapping].start < end:
            block.update(images[overlapping].digest)
            overlapping += 1
        known.append(block.digest())
    return known[:count]
