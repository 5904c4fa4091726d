"""First stage: the vision tower learns, cell by cell, what is where in a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel

from model.phi3v.image_processing import TILE
from scripts.demo_training.network import (
    PATCH,
    TOWER,
    CellHeads,
    cell_losses,
    init_tower,
    tower_features,
)
from scripts.demo_training.optimizers import MovingAverage, Optimizers
from scripts.demo_training.parallel import rank
from scripts.demo_training.progress import History
from scripts.demo_training.scenes import COLOURS, SHAPES, THINGS
from scripts.demo_training.views import (
    MOST_THINGS,
    CellLabels,
    LabelledViews,
    collate,
    normalise,
)

LEARNING_RATE = 2.5e-3
HELD_OUT = 10**9  # pictures from here on are never trained on
SAVE_EVERY = 50


@dataclass(frozen=True)
class Phase:
    """A stretch of training on views of one size.

    Attributes:
        name: of its files.
        side: pixels of a view; smaller than 336, it is put anywhere in one.
        batch: views per step and process.
        mosaics: share of pictures with many things.
        learning_rate: at its highest.
        decay: share of the steps in which it falls.
        repeats: how often each picture comes.
    """

    name: str
    side: int
    batch: int
    mosaics: float
    learning_rate: float
    decay: float
    repeats: int = 1


# A window of a quarter of the view costs a sixth, and holds half as many things to learn from.
WINDOWS = Phase("windows", 168, 24, 0.75, 2.5e-3, 0.3)
WHOLE = Phase("whole", 336, 8, 0.3, 2.0e-3, 0.8)


class TowerTrainee(nn.Module):
    """The tower and its heads."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tower = CLIPVisionModel(CLIPVisionConfig(**TOWER))
        init_tower(self.tower, seed)
        self.heads = CellHeads(
            4 * int(TOWER["hidden_size"]), len(THINGS), len(COLOURS), MOST_THINGS
        )

    def forward(
        self, views: torch.Tensor, corners: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Outputs of the heads for uint8 views."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.heads(tower_features(self.tower, normalise(views), corners))


def train_tower(
    directory: Path, phase: Phase, steps: int, seed: int, after: Phase | None = None
) -> None:
    """Train, or go on training, for ``steps`` in all.

    Args:
        directory: holds all that is needed to go on.
        phase: on what.
        steps: how long; they may change while the learning rate has not begun to fall.
        seed: of weights and pictures.
        after: the phase whose weights to start from.
    """
    model = TowerTrainee(seed)
    if after is not None:
        model.load_state_dict(average_weights(directory, after))
    average = MovingAverage(model)
    optimizers = Optimizers([model], steps, phase.learning_rate, warm_up=30, decay=phase.decay)
    history = History(directory / f"{phase.name}.csv")
    state_path, start = directory / f"{phase.name}.pt", 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=False)
        model.load_state_dict(state["model"])
        average.module.load_state_dict(state["average"])
        optimizers.load_state_dict(state["optimizers"])
        start = average.seen = state["step"]
    if start >= steps:
        return
    views = LabelledViews(
        seed + phase.side + 1000 * rank(),
        (steps - start) * phase.batch,
        start * phase.batch,
        phase.mosaics,
        phase.side,
        repeats=phase.repeats,
    )
    batches = DataLoader(views, phase.batch, num_workers=1, collate_fn=collate, prefetch_factor=6)
    bar = tqdm(
        batches,
        f"Tower, {phase.name}",
        initial=start,
        total=steps,
        mininterval=2,
        disable=rank() > 0,
    )
    room = (TILE - phase.side) // (2 * PATCH) + 1
    for step, (pixels, marks) in enumerate(bar, start):
        generator = torch.Generator().manual_seed(step + 10**6 * rank())
        corners = 2 * torch.randint(room, (len(pixels), 2), generator=generator)
        losses = cell_losses(model(pixels, corners), marks)
        loss = sum(losses.values(), torch.zeros(()))
        loss.backward()
        optimizers.step(step)
        average.update(model)
        history.add(step, loss=loss.item(), **{k: v.item() for k, v in losses.items()})
        bar.set_postfix(loss=f"{history.recent('loss'):.3f}")
        if rank() > 0:
            continue
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {
                "model": model.state_dict(),
                "average": average.module.state_dict(),
                "optimizers": optimizers.state_dict(),
                "step": step + 1,
            }
            torch.save(state, state_path.with_suffix(".new"))
            state_path.with_suffix(".new").rename(state_path)
            history.save()
        if (step + 1) % (10 * SAVE_EVERY) == 0 or step + 1 == steps:
            found = examine(average.module, phase, seed)
            tqdm.write(f"step {step + 1}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))


def average_weights(directory: Path, phase: Phase) -> dict[str, torch.Tensor]:
    """The averaged weights at the end of a phase."""
    state = torch.load(directory / f"{phase.name}.pt", weights_only=False)
    return dict(state["average"])


def tower_alone(weights: dict[str, torch.Tensor]) -> CLIPVisionModel:
    """The tower with those weights of a ``TowerTrainee``, without its heads."""
    model = TowerTrainee(0)
    model.load_state_dict(weights)
    return model.tower.eval().requires_grad_(False)


@torch.no_grad()
def examine(model: TowerTrainee, phase: Phase, seed: int, count: int = 192) -> dict[str, float]:
    """Accuracies at the centres of things in held-out pictures."""
    views = LabelledViews(seed, count, HELD_OUT, 0, phase.side)
    rights: dict[str, list[torch.Tensor]] = {}
    for pixels, marks in DataLoader(views, phase.batch, collate_fn=collate):
        for name, right in _rights(model(pixels), marks).items():
            rights.setdefault(name, []).append(right.float())
    return {name: torch.cat(parts).mean().item() for name, parts in rights.items()}


def _rights(outputs: list[torch.Tensor], marks: CellLabels) -> dict[str, torch.Tensor]:
    thing, colour, box, centre, rank, count = outputs
    at = marks.centre > 0
    is_glyph = marks.thing[at] > len(SHAPES)
    right = thing[at].argmax(-1) == marks.thing[at]
    found = (centre[..., 0] > 0).sum(1)
    return {
        "shapes": right[~is_glyph],
        "glyphs": right[is_glyph],
        "colours": colour[at].argmax(-1) == marks.colour[at],
        "place error": (box[at] - marks.box[at])[:, :2].abs().mean(-1),
        "size error": (box[at] - marks.box[at])[:, 2].abs(),
        "centres": found == marks.count[:, 0],
        "rank": rank[at].argmax(-1) == marks.rank[at],
        "count": count[at].argmax(-1) == marks.count[at],
    }
