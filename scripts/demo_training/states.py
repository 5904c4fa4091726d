"""What a stage of training needs to go on after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.demo_training.optimizers import MovingAverage, Optimizers

SAVE_EVERY = 50  # steps


class State:
    """The weights of a stage, their moving average, their optimizers, and how many steps they took.

    Args:
        path: where it is kept; if the file is there, all are set to what it holds.
        model: what is trained.
        optimizers: of it.
    """

    def __init__(self, path: Path, model: nn.Module, optimizers: Optimizers) -> None:
        self._path, self._model, self._optimizers = path, model, optimizers
        self.average = MovingAverage(model)
        self.step = 0
        if path.exists():
            state = torch.load(path, weights_only=True)
            model.load_state_dict(state["model"])
            self.average.module.load_state_dict(state["average"])
            optimizers.load_state_dict(state["optimizers"])
            self.step = self.average.seen = state["step"]

    def advance(self) -> None:
        """Take a step against the gradients."""
        self._optimizers.step(self.step)
        self.average.update(self._model)
        self.step += 1

    def save(self) -> None:
        """Keep all of it; an interruption leaves the old file or the new one."""
        state: dict[str, Any] = {
            "model": self._model.state_dict(),
            "average": self.average.module.state_dict(),
            "optimizers": self._optimizers.state_dict(),
            "step": self.step,
        }
        torch.save(state, self._path.with_suffix(".new"))
        self._path.with_suffix(".new").rename(self._path)


def averaged(path: Path) -> dict[str, Tensor]:
    """The averaged weights that were kept."""
    return dict(torch.load(path, weights_only=True)["average"])
