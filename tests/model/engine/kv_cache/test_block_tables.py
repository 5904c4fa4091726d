"""Block tables on the device: equal to the sequences' own lists, whatever happened between steps."""

from __future__ import annotations

import random

import pytest
import torch

from model.engine.kv_cache import block_tables
from model.engine.kv_cache.block_tables import BlockTables


def check(tables: BlockTables, lists: list[list[int]]) -> list[int]:
    rows = tables.rows_of(lists)
    assert len(set(rows)) == len(rows)
    found = tables.rows(torch.tensor(rows))
    for row, blocks in zip(found.tolist(), lists, strict=True):
        assert row[: len(blocks)] == blocks
    return rows


def test_random_steps() -> None:
    """Sequences begin, grow, are recomputed, get copies of blocks, pause and end."""
    chance = random.Random(1)
    tables = BlockTables(6, 12, torch.device("cpu"))
    running: list[list[int]] = []
    for _ in range(400):
        while len(running) < 6 and chance.random() < 0.5:
            running.append([chance.randrange(1000)])
        for table in running:
            if len(table) < 12 and chance.random() < 0.4:
                table.append(chance.randrange(1000))
            if chance.random() < 0.05:
                table[-1] = chance.randrange(1000)
            if chance.random() < 0.05:
                table[:] = chance.choices(range(1000), k=len(table))
        step = [table for table in running if chance.random() < 0.8]
        if step:
            check(tables, step)
        for table in [table for table in running if chance.random() < 0.1]:
            running.remove(table)
            table.clear()  # as BlockManager.release does


def test_a_sequence_keeps_its_row() -> None:
    tables = BlockTables(3, 4, torch.device("cpu"))
    first, second, third = [1], [2, 3], [4]
    rows = check(tables, [first, second])
    first.append(9)
    assert check(tables, [second, first]) == rows[::-1]
    second.clear()
    assert check(tables, [first, third])[0] == rows[0]


def test_what_could_not_be_written_is_written_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails for want of memory is tried again."""
    tables = BlockTables(2, 4, torch.device("cpu"))
    first, second = [1, 2], [3]
    check(tables, [first])
    first.append(4)
    with monkeypatch.context() as full:
        full.setattr(block_tables, "to_device", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tables.rows_of([first, second])
    check(tables, [first, second])
