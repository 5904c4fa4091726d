"""Every block is free or held, as often as tables hold it, and cached content is never wrong."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.engine.scheduling.block_manager import BlockManager

NUM_BLOCKS, BLOCK_SIZE = 64, 4


@given(st.integers(0, 2**32), st.booleans())
def test_blocks_are_counted(seed: int, caching: bool) -> None:
    """Six tables grow, fork and are released at random; content is what was filed last."""
    rng = random.Random(seed)
    manager = BlockManager(NUM_BLOCKS, BLOCK_SIZE, caching)
    tables: list[list[int]] = [[] for _ in range(6)]
    content: dict[int, bytes] = {}  # what each block holds, if it was filed
    for _ in range(80):
        table = rng.choice(tables)
        match rng.randrange(4):
            case 0:
                manager.release(table)
                assert table == []
            case 1:
                length = len(table) * BLOCK_SIZE + rng.randrange(40)
                before = len(table)
                if manager.can_grow(table, length):
                    manager.grow(table, length)
                for block in table[before:]:
                    assert [block in other for other in tables].count(True) == 1
                    content.pop(block, None)
            case 2:
                other = rng.choice(tables)
                if other is not table:
                    manager.release(other)
                    manager.share(table)
                    other += table
            case 3 if table:
                block, name = rng.choice(table), rng.randbytes(1)
                manager.file(block, name)
                if manager.find([name]) == [block]:
                    content[block] = name
        held = [block for t in tables for block in t]
        assert manager.num_free == NUM_BLOCKS - len(set(held))
        for name in {bytes([i]) for i in range(256)}:
            for block in manager.find([name]):
                assert caching
                assert content[block] == name
    for table in tables:
        manager.release(table)
    assert manager.num_free == NUM_BLOCKS


def test_the_longest_prefix_is_found_and_the_longest_unused_is_lost() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    table: list[int] = []
    manager.grow(table, 12)
    blocks = list(table)
    for block, name in zip(blocks, (b"a", b"ab", b"abc"), strict=True):
        manager.file(block, name)
    assert manager.find([b"a", b"ab", b"abX", b"abc"]) == blocks[:2]
    manager.release(table)
    assert (manager.num_free, manager.num_cached) == (4, 3)
    manager.grow(table, 8)  # the block that never held anything, then the prefix's end
    assert manager.find([b"a", b"ab", b"abc"]) == blocks[:2]
    manager.share(blocks[:1])
    manager.grow(table, 12)
    assert manager.find([b"a", b"ab"]) == blocks[:1]
    with pytest.raises(KeyError):
        manager.take()
