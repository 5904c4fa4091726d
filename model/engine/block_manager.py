"""Who owns which KV block. Knows nothing of what is in them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class BlockTable:
    """The blocks of one sequence, in order of position.

    Attributes:
        one_run: whether they are neighbours, so that a slice of the cache is the sequence.
    """

    blocks: list[int] = field(default_factory=list)
    one_run: bool = True

    def __len__(self) -> int:
        return len(self.blocks)


class BlockManager:
    """Free and used blocks.

    A block table that is one run of neighbours can be read without copying (``kv_cache``), so a
    table grows into the next block where that is free, and a new table starts in the middle of the
    largest free run, where it has room to grow and leaves its neighbours some.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._used = np.zeros(num_blocks, dtype=bool)
        self._num_used = 0

    @property
    def num_free(self) -> int:
        """Blocks that nobody owns."""
        return self.num_blocks - self._num_used

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` positions take."""
        return -(-num_tokens // self.block_size)

    def can_grow(self, table: BlockTable, num_tokens: int) -> bool:
        """Whether ``table`` can be extended to hold ``num_tokens`` positions."""
        return self.blocks_for(num_tokens) - len(table) <= self.num_free

    def grow(self, table: BlockTable, num_tokens: int) -> None:
        """Extend ``table`` in place to hold ``num_tokens`` positions; see ``can_grow``."""
        missing = self.blocks_for(num_tokens) - len(table)
        assert missing <= self.num_free, "grow without can_grow"
        for left in range(missing, 0, -1):
            block = table.blocks[-1] + 1 if table.blocks else self.num_blocks
            if block == self.num_blocks or self._used[block]:
                block = self._start_of_room(left)
                table.one_run = not table.blocks
            self._used[block] = True
            self._num_used += 1
            table.blocks.append(block)

    def release(self, table: BlockTable) -> None:
        """Give back all blocks of ``table`` and empty it."""
        assert self._used[table.blocks].all(), "a block was given back twice"
        self._used[table.blocks] = False
        self._num_used -= len(table)
        table.blocks.clear()
        table.one_run = True

    def _start_of_room(self, blocks: int) -> int:
        """A free block with room after it: the middle of the largest free run, if that fits."""
        edges = np.flatnonzero(np.diff(self._used, prepend=True, append=True))
        starts, ends = edges[::2], edges[1::2]
        largest = int((ends - starts).argmax())
        start, length = int(starts[largest]), int(ends[largest] - starts[largest])
        if start == 0 or length // 2 < blocks:
            return start  # nothing grows towards it from the left, or it would not fit
        return start + length // 2
