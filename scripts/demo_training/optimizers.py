"""Muon for matrices, AdamW for other parameters, the schedule, and weight averaging."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from scripts.demo_training.parallel import share_gradients

# Coefficients of the polynomial that drives singular values to 1 (Keller Jordan's Muon).
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 4


class Muon:
    """The Muon optimizer: updates with equal singular values, so that fewer steps are needed.

    Like ``torch.optim.Muon``, but processes all matrices of one shape together; one by one, small ones
    take half as long as the network itself.
    """

    def __init__(self, matrices: list[nn.Parameter], decay: float = 0.02) -> None:
        self._decay = decay
        self._by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for matrix in matrices:
            self._by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
        self._momenta = {
            shape: torch.zeros(len(alike), *shape) for shape, alike in self._by_shape.items()
        }

    @torch.no_grad()
    def step(self, rate: float, momentum: float = 0.95) -> None:
        """Take a step; matrices without a gradient do not change."""
        for shape, alike in self._by_shape.items():
            zero = torch.zeros(shape)
            gradient = torch.stack([zero if p.grad is None else p.grad for p in alike])
            kept = self._momenta[shape].lerp_(gradient, 1 - momentum)
            direction = _orthogonal(gradient.lerp(kept, momentum))
            scale = 0.2 * max(shape) ** 0.5  # matches the RMS of AdamW's updates
            for parameter, update in zip(alike, direction, strict=True):
                if parameter.grad is not None:
                    parameter.mul_(1 - rate * self._decay).add_(update, alpha=-rate * scale)

    def state_dict(self) -> list[Tensor]:
        """To continue from."""
        return list(self._momenta.values())

    def load_state_dict(self, momenta: list[Tensor]) -> None:
        """Continue from ``momenta``."""
        self._momenta = dict(zip(self._momenta, momenta, strict=True))


def _orthogonal(matrices: Tensor) -> Tensor:
    """Approximately the nearest matrices with equal singular values, ``(N, rows, columns)``."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(ITERATIONS):
        square = x @ x.transpose(1, 2)
        x = A * x + (B * square + C * (square @ square)) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Optimizers:
    """Trains all parameters with a warm-up, a constant learning rate, and a linear decay to zero.

    Args:
        modules: to train.
        steps: total number of steps.
        learning_rate: maximum.
        warm_up: number of steps of the warm-up.
        decay: fraction of the steps in which it decays.
        slow: prefixes of parameters with a tenth of AdamW's learning rate.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        steps: int,
        learning_rate: float,
        warm_up: int = 100,
        decay: float = 0.4,
        slow: tuple[str, ...] = (),
    ) -> None:
        named = [pair for module in modules for pair in module.named_parameters()]
        matrices, others, slower = [], [], []
        for name, parameter in named:
            if name.startswith(slow):
                slower.append(parameter)
            elif parameter.ndim == 2 and not ("embed" in name or name.startswith("head.")):
                matrices.append(parameter)
            else:
                others.append(parameter)
        self._steps, self._warm_up, self._decay = steps, warm_up, decay
        self._rate = learning_rate
        self._parameters = [parameter for _, parameter in named]
        self._muon = Muon(matrices)
        groups = [{"params": others, "share": 1.0}, {"params": slower, "share": 0.1}]
        self._adam = torch.optim.AdamW(
            groups, learning_rate, (0.9, 0.98), weight_decay=0.0, foreach=True
        )

    def step(self, number: int) -> None:
        """Average and clip the gradients, and take step ``number``."""
        share_gradients(self._parameters)
        left = (self._steps - number) / (self._decay * self._steps)
        rate = self._rate * min(1.0, (number + 1) / self._warm_up, max(left, 0.0))
        nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
        self._muon.step(rate)
        for group in self._adam.param_groups:
            group["lr"] = rate * group["share"]
        self._adam.step()
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> list[Any]:
        """To continue from."""
        return [self._muon.state_dict(), self._adam.state_dict()]

    def load_state_dict(self, states: list[Any]) -> None:
        """Continue from ``states``."""
        self._muon.load_state_dict(states[0])
        self._adam.load_state_dict(states[1])


class MovingAverage:
    """A copy of a module with an exponential moving average of its weights."""

    def __init__(self, module: nn.Module, keep: float = 0.998) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._keep, self.seen = keep, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Update the average after a step."""
        self.seen += 1
        keep = min(self._keep, self.seen / (self.seen + 10))
        mine: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - keep)
