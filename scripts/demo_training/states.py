"""State of a training stage, saved so that training can resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.demo_training.optimizers import MovingAverage, Optimizers

SAVE_EVERY = 50  # steps


class State:
    """A stage's weights, their moving average, the optimizers and the number of steps.

    Args:
        path: file of the state; loaded if it exists.
        model: to train.
        optimizers: of the model.
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
        """Take an optimizer step."""
        self._optimizers.step(self.step)
        self.average.update(self._model)
        self.step += 1

    def save(self) -> None:
        """Save the state atomically."""
        state: dict[str, Any] = {
            "model": self._model.state_dict(),
            "average": self.average.module.state_dict(),
            "optimizers": self._optimizers.state_dict(),
            "step": self.step,
        }
        torch.save(state, self._path.with_suffix(".new"))
        self._path.with_suffix(".new").rename(self._path)


def averaged(path: Path) -> dict[str, Tensor]:
    """The saved moving average of the weights."""
    return dict(torch.load(path, weights_only=True)["average"])
