"""The block tables of running sequences in GPU memory, updated by difference.

A sequence gets a new block every 16 tokens, so a step changes few entries of tables that may have
thousands.

Shape suffixes: N tables, S sequences of a step, W blocks in the longest table,
C changed entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.phi3v.transfer import to_device


class BlockTables:
    """One row on the device for each sequence, found by its block table's identity.

    Args:
        rows: maximum number of sequences in a step.
        width: maximum number of blocks of a sequence.
        device: of the tables.

    Attributes:
        table_NW: int32; entries beyond a sequence's blocks are stale.
    """

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self.table_NW = torch.zeros((rows, width), dtype=torch.int32, device=device)
        # The lists themselves are kept, so that no other list can get the same id.
        self._lists: list[list[int]] = [[] for _ in range(rows)]
        self._written: list[list[int]] = [[] for _ in range(rows)]
        self._row_by_id: dict[int, int] = {}

    def rows_of(self, tables: Sequence[list[int]]) -> list[int]:
        """The rows of a step's block tables, after writing what changed in them.

        Args:
            tables: of different sequences; the sequences' own lists, not copies.
        """
        rows = self._find(tables)
        places: list[np.ndarray] = []
        blocks: list[int] = []
        changed: list[int] = []
        for index, (row, table) in enumerate(zip(rows, tables, strict=True)):
            count = len(self._written[row])
            if table[:count] != self._written[row]:  # recomputed, or a shared block was copied
                count = 0
            if len(table) > count:
                places.append(np.arange(count, len(table)) + row * self.table_NW.shape[1])
                blocks += table[count:]
                changed.append(index)
        if places:
            changes = np.stack([np.concatenate(places), np.array(blocks)])
            place_C, block_C = to_device(torch.from_numpy(changes), self.table_NW.device)
            self.table_NW.view(-1).index_copy_(0, place_C, block_C.to(torch.int32))
        # Only now: a step that fails before, for want of memory, is tried again.
        for index in changed:
            self._written[rows[index]] = tables[index].copy()
        return rows

    def rows(self, row_S: Tensor) -> Tensor:
        """The tables in these rows, int32 ``(S, W)``."""
        return self.table_NW.index_select(0, row_S)

    def _find(self, tables: Sequence[list[int]]) -> list[int]:
        """Rows of tables; new ones get rows of sequences that are not in the step."""
        missing = [table for table in tables if id(table) not in self._row_by_id]
        if missing:
            used = {self._row_by_id.get(id(table)) for table in tables}
            unused = [row for row in range(len(self._lists)) if row not in used]
            unused.sort(key=lambda row: len(self._lists[row]) > 0)  # rows of ended sequences first
            for table, row in zip(missing, unused, strict=False):
                self._row_by_id.pop(id(self._lists[row]), None)
                self._lists[row], self._written[row] = table, []
                self._row_by_id[id(table)] = row
        return [self._row_by_id[id(table)] for table in tables]
