"""Allocates KV blocks and finds cached ones by prefix hash. Handles no tensors.

Blocks are reference-counted, so that sequences can share them: a common prefix, or the prompt of
several answers. A full block is registered under its prefix hash; when released it stays cached until
its memory is needed, least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class BlockManager:
    """Free, held and cached blocks.

    Args:
        num_blocks: total number of blocks.
        block_size: positions per block.
        caching: keep released blocks cached.

    Attributes:
        caching: as given; without it, prefix hashes are not used.
    """

    def __init__(self, num_blocks: int, block_size: int, caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.caching = caching
        self._holders = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # oldest first
        self._by_hash: dict[bytes, int] = {}
        self._hashes: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Number of blocks that no sequence holds, cached or not."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Number of blocks with a prefix hash, held or not."""
        return len(self._hashes)

    def blocks_for(self, num_tokens: int) -> int:
        """Number of blocks for ``num_tokens`` positions."""
        return -(-num_tokens // self.block_size)

    def can_grow(self, table: list[int], num_tokens: int) -> bool:
        """Whether enough blocks are free to extend ``table`` to ``num_tokens`` positions."""
        return self.blocks_for(num_tokens) - len(table) <= self.num_free

    def grow(self, table: list[int], num_tokens: int) -> None:
        """Extend ``table`` in place to ``num_tokens`` positions; see ``can_grow``."""
        for _ in range(self.blocks_for(num_tokens) - len(table)):
            table.append(self.take())

    def take(self) -> int:
        """Allocate a free block, dropping its cached content; raises KeyError if there is none."""
        block, _ = self._free.popitem(last=False)
        if (prefix_hash := self._hashes.pop(block, None)) is not None:
            del self._by_hash[prefix_hash]
        self._holders[block] = 1
        return block

    def share(self, blocks: Iterable[int]) -> None:
        """Add a reference to held or cached blocks."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1

    def release(self, table: list[int]) -> None:
        """Release all blocks of ``table`` and empty it."""
        # Release the last ones first, so that they are reused first: prefixes need their start.
        while table:
            block = table.pop()
            assert self._holders[block] > 0, "a block was released twice"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None
                if block not in self._hashes:  # not cached, so reuse it first
                    self._free.move_to_end(block, last=False)

    def file(self, block: int, prefix_hash: bytes) -> None:
        """Register a full block under its prefix hash, unless one with that hash exists."""
        if self.caching and prefix_hash not in self._by_hash and block not in self._hashes:
            self._by_hash[prefix_hash] = block
            self._hashes[block] = prefix_hash

    def find(self, prefix_hashes: Iterable[bytes]) -> list[int]:
        """Blocks of the longest cached prefix; call ``share`` before anything else."""
        found = []
        for prefix_hash in prefix_hashes:
            if (block := self._by_hash.get(prefix_hash)) is None:
                break
            found.append(block)
        return found
