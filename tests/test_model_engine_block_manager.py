"""Blocks are owned once, come back, and tables stay in one run where there is room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from model.engine.block_manager import BlockManager, BlockTable

NUM_BLOCKS, BLOCK_SIZE = 64, 4


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 80), st.booleans()), max_size=60))
def test_every_block_is_owned_once(steps: list[tuple[int, int, bool]]) -> None:
    """Six tables grow and are released at random."""
    manager = BlockManager(NUM_BLOCKS, BLOCK_SIZE)
    tables = [BlockTable() for _ in range(6)]
    lengths = [0] * 6
    for which, more, release in steps:
        table = tables[which]
        if release:
            manager.release(table)
            lengths[which] = 0
        elif manager.can_grow(table, lengths[which] + more):
            lengths[which] += more
            manager.grow(table, lengths[which])
        owned = [block for t in tables for block in t.blocks]
        assert len(owned) == len(set(owned))
        assert manager.num_free == NUM_BLOCKS - len(owned)
        for t, length in zip(tables, lengths, strict=True):
            assert len(t) == manager.blocks_for(length)
            neighbours = all(b - a == 1 for a, b in zip(t.blocks, t.blocks[1:], strict=False))
            assert neighbours or not t.one_run


def test_tables_that_grow_together_stay_in_one_run() -> None:
    manager = BlockManager(NUM_BLOCKS, BLOCK_SIZE)
    tables = [BlockTable() for _ in range(4)]
    for length in range(1, 33):
        for table in tables:
            manager.grow(table, length)
    assert all(table.one_run for table in tables)


def test_a_table_goes_on_elsewhere_when_it_is_blocked() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    first, second = BlockTable(), BlockTable()
    manager.grow(first, 1)
    manager.grow(second, 1)
    manager.grow(first, 3 * BLOCK_SIZE)
    assert manager.num_free == 0
    assert not first.one_run
    assert not manager.can_grow(second, BLOCK_SIZE + 1)
    manager.release(first)
    assert (manager.num_free, first.blocks, first.one_run) == (3, [], True)
