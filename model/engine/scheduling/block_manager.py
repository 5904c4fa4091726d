"""Who holds which KV block, and which blocks hold what prompts start with. Knows no tensors.

Blocks are counted, so that sequences can share them: a prefix that both start with, or the prompt
of several answers. A full block is filed under its prefix hash; when nobody holds it any more it
stays readable until its memory is needed, the longest unused first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class BlockManager:
    """Free, held and cached blocks.

    Args:
        num_blocks: in all.
        block_size: slots in each.
        caching: whether blocks that nobody holds stay readable.

    Attributes:
        caching: as given; without it, prefix hashes are of no use.
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
        """Blocks that nobody holds, whether their content is cached or not."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks filed under a prefix hash, held or not."""
        return len(self._hashes)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` positions take."""
        return -(-num_tokens // self.block_size)

    def can_grow(self, table: list[int], num_tokens: int) -> bool:
        """Whether ``table`` can be extended to hold ``num_tokens`` positions."""
        return self.blocks_for(num_tokens) - len(table) <= self.num_free

    def grow(self, table: list[int], num_tokens: int) -> None:
        """Extend ``table`` in place to hold ``num_tokens`` positions; see ``can_grow``."""
        for _ in range(self.blocks_for(num_tokens) - len(table)):
            table.append(self.take())

    def take(self) -> int:
        """Hold a free block, whose cached content is lost; KeyError if there is none."""
        block, _ = self._free.popitem(last=False)
        if (prefix_hash := self._hashes.pop(block, None)) is not None:
            del self._by_hash[prefix_hash]
        self._holders[block] = 1
        return block

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks that are held or cached already."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1

    def release(self, table: list[int]) -> None:
        """Let go of all blocks of ``table`` and empty it."""
        # The last ones are reused first: a prefix without its start is of no use.
        while table:
            block = table.pop()
            assert self._holders[block] > 0, "a block was given back twice"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None
                if block not in self._hashes:  # holds nothing worth keeping
                    self._free.move_to_end(block, last=False)

    def file(self, block: int, prefix_hash: bytes) -> None:
        """Make a full block findable; the first of several with the same content is."""
        if self.caching and prefix_hash not in self._by_hash and block not in self._hashes:
            self._by_hash[prefix_hash] = block
            self._hashes[block] = prefix_hash

    def find(self, prefix_hashes: Iterable[bytes]) -> list[int]:
        """Blocks of the longest cached prefix, to be shared at once by who wants them."""
        found = []
        for prefix_hash in prefix_hashes:
            if (block := self._by_hash.get(prefix_hash)) is None:
                break
            found.append(block)
        return found
