"""Computes the trained tower's picture tokens once and keeps them in a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from scripts.demo_training.language.rows import scene_of
from scripts.demo_training.network import SIZES
from scripts.demo_training.parallel import processes, rank, wait_for_all
from scripts.demo_training.tower.cells import CELLS
from scripts.demo_training.tower.stage import TowerTrainee
from scripts.demo_training.tower.views import view

TOKENS = CELLS * CELLS + 2


@torch.no_grad()
def seen_pictures(tower: TowerTrainee, directory: Path, seed: int, count: int) -> Tensor:
    """Picture tokens and separators of the first ``count`` pictures, ``(count, 146, hidden size)``.

    Each process computes its share; all read the whole file.
    """
    shape = (count, TOKENS, SIZES.hidden_size)
    size = count * TOKENS * SIZES.hidden_size
    kept = torch.from_file(str(directory / "seen.bin"), True, size, dtype=torch.bfloat16).view(
        shape
    )
    share = -(-count // processes())
    first, end = rank() * share, min((rank() + 1) * share, count)
    done_path = directory / f"seen-{count}-{rank()}-of-{processes()}.done"
    done = int(done_path.read_text()) if done_path.exists() else first
    batches: Iterable[Tensor] = ()
    if done < end:
        batches = DataLoader(_Views(seed, done, end), 16, num_workers=1)
    for views in tqdm(batches, "Encoding pictures", mininterval=2, disable=rank() > 0):
        kept[done : done + len(views)] = tower(views)[0]
        done += len(views)
        done_path.write_text(str(done))
    wait_for_all()
    return kept


class _Views(Dataset[Tensor]):
    def __init__(self, seed: int, first: int, end: int) -> None:
        self._seed, self._first, self._end = seed, first, end

    def __len__(self) -> int:
        return self._end - self._first

    def __getitem__(self, index: int) -> Tensor:
        number = self._first + index
        rng = np.random.default_rng((self._seed, 2, number))
        return view(rng, scene_of(self._seed, number))
