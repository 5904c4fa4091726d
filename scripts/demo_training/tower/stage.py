"""First stage: the tower learns to recognize things, and the projection to encode them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from model.phi3v.inputs.image_processing import TILE
from model.phi3v.vision import MERGE
from scripts.demo_training.data.scenes import COLOURS, SHAPES, THINGS
from scripts.demo_training.network import PATCH, SIZES
from scripts.demo_training.optimizers import Optimizers
from scripts.demo_training.progress import History
from scripts.demo_training.states import SAVE_EVERY, State, averaged
from scripts.demo_training.tower.codes import (
    CODE,
    MEASURES_FROM,
    PARTS,
    PLACES_FROM,
    by_part,
    heard,
    spoken,
)
from scripts.demo_training.tower.shifts import (
    CONTENT,
    LOUDEST,
    PLACE_GAIN,
    PLACES,
    WIDTH,
    ShiftTower,
)
from scripts.demo_training.tower.views import LabelledViews, Sample, collate

HELD_OUT = 10**9  # pictures from this index on are not trained on
MERGED = MERGE * MERGE * WIDTH
MEASURES_MATTER = 1.5
SILENCE_MATTERS = 0.15  # weight of every cell; a cell's share is added
# Scales content and positions to about 1, for the linear layer.
SCALE = torch.cat(
    [torch.full((CONTENT,), 1 / LOUDEST), torch.full((PLACES,), 0.1 / PLACE_GAIN)]
).repeat(MERGE * MERGE)


@dataclass(frozen=True)
class Phase:
    """A phase of training on views of one size.

    Attributes:
        name: of its files.
        side: size of a view in pixels; windows smaller than 336 are placed at random.
        batch: views per step.
        mosaics: fraction of pictures with many things.
        learning_rate: maximum.
        decay: fraction of the steps in which it decays.
        repeats: number of uses of each picture.
        reads: whether the projection is initialized by linear regression, and learns slowly.
    """

    name: str
    side: int
    batch: int
    mosaics: float
    learning_rate: float
    decay: float
    repeats: int
    reads: bool = False


# A window of a quarter of the view costs a quarter, but contains half as many things.
WINDOWS = Phase("windows", 168, 24, 0.75, 2.5e-3, 0.3, 2)
WHOLE = Phase("whole", 336, 8, 0.3, 2.0e-3, 0.8, 2)
# The projection is too narrow to compute codes, so the tower learns that and the projection reads them.
# At full learning rate, units of rare glyphs would move to the flat part of GELU and stop learning.
TELLING = Phase("telling", 336, 8, 0.3, 1.5e-3, 0.8, 2, reads=True)
READ_FROM, READ_MOSAICS = (
    2400,
    0.6,
)  # views at most, about 150 of each glyph; fraction with many things


class TowerTrainee(nn.Module):
    """The tower, the projection, and auxiliary heads that are discarded after training.

    Attributes:
        projection: the checkpoint's ``img_projection``, of features scaled by ``SCALE``.
        separators: the checkpoint's ``sub_GN`` and ``glb_GN``, scaled likewise; ``(2, MERGED)``.
        heads: of thing, colour and box, by cell.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tower = ShiftTower()
        hidden = SIZES.hidden_size
        self.projection = nn.Sequential(
            nn.Linear(MERGED, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        self.separators = nn.Parameter(0.5 * torch.randn(2, MERGED))
        self._sizes = [1 + len(THINGS), len(COLOURS), 3]
        self.heads = nn.Sequential(nn.LayerNorm(MERGED), nn.Linear(MERGED, sum(self._sizes)))

    def forward(
        self, views: Tensor, corners: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Picture tokens with separators at the end, the heads' outputs, and the content's mean square.

        Views are uint8; see ``ShiftTower``.
        """
        with torch.autocast("cpu", torch.bfloat16):
            features, loudness = self.tower(views, corners)
            features = features * SCALE
            tokens = self.projection(features)
            heads = self.heads(features).float().split(self._sizes, -1)
        separators = self.projection(self.separators).expand(len(views), -1, -1)
        return torch.cat([tokens.float(), separators], 1), list(heads), loudness


def losses(
    tokens: Tensor, heads: list[Tensor], loudness: Tensor, batch: Sample, whole: bool
) -> dict[str, Tensor]:
    """The losses of the tower."""
    marks = batch.labels
    thing, colour, box = heads
    covered, centres = marks.thing > 0, marks.centre
    # Weight centres, so that large things, which cover many cells, do not dominate.
    weight = torch.where(centres, 1.5, torch.where(covered, 0.7, 0.12))
    per_cell = functional.cross_entropy(
        thing.flatten(0, 1), marks.thing.flatten(), reduction="none"
    )
    told = functional.pad(batch.codes, (0, 0, 0, 2))  # separators encode nothing
    told_of = told[..., 0] / PARTS["share"][1]
    if not whole:  # positions are undefined in a window, so ignore them
        told = torch.cat([told[..., :PLACES_FROM], heard(tokens)[..., PLACES_FROM:]], -1)
    error = (tokens - spoken(told)).square().sum(-1)
    if whole:  # a wrong position is a smaller error than a wrong name, but as important
        wrong = (heard(tokens) - told)[..., MEASURES_FROM:]
        error = error + MEASURES_MATTER * wrong.square().sum(-1)
    return {
        "thing": (per_cell * weight.flatten()).sum() / weight.sum(),
        "at centre": functional.cross_entropy(thing[centres], marks.thing[centres]),
        "colour": functional.cross_entropy(colour[covered], marks.colour[covered]),
        "box": functional.smooth_l1_loss(box[covered], marks.box[covered], beta=0.3),
        "told": (error * (SILENCE_MATTERS + told_of)).sum() / told_of.sum() / 25,
        "loud": 0.05 * loudness,
    }


def train_tower(
    directory: Path, phase: Phase, steps: int, seed: int, after: Phase | None = None
) -> None:
    """Train or resume training, for ``steps`` in total.

    Args:
        directory: of the training state.
        phase: the phase.
        steps: total steps; may change before the learning rate decays.
        seed: of weights and pictures.
        after: the phase whose weights to start from.
    """
    model = TowerTrainee(seed)
    path = directory / f"{phase.name}.pt"
    if after is not None:
        model.load_state_dict(averaged(directory / f"{after.name}.pt"))
    if phase.reads and not path.exists():
        count = min(READ_FROM, steps * phase.batch)
        read_linearly(model, LabelledViews(seed, count, 0, READ_MOSAICS, phase.side))
    optimizers = Optimizers(
        [model],
        steps,
        phase.learning_rate,
        warm_up=30,
        decay=phase.decay,
        slow=("projection.", "separators") if phase.reads else (),
    )
    history = History(directory / f"{phase.name}.csv")
    state = State(path, model, optimizers)
    left = max(0, steps - state.step) * phase.batch
    views = LabelledViews(
        seed + phase.side,
        left,
        state.step * phase.batch,
        phase.mosaics,
        phase.side,
        phase.repeats,
    )
    batches = DataLoader(views, phase.batch, num_workers=1, collate_fn=collate, prefetch_factor=6)
    bar = tqdm(
        batches if left else [],
        f"Tower, {phase.name}",
        initial=state.step,
        total=steps,
        mininterval=2,
    )
    room = (TILE - phase.side) // (2 * PATCH) + 1
    for batch in bar:
        generator = torch.Generator().manual_seed(state.step)
        corners = 2 * torch.randint(room, (len(batch.pixels), 2), generator=generator)
        tokens, heads, loudness = model(batch.pixels, corners)
        parts = losses(tokens, heads, loudness, batch, phase.side == TILE)
        loss = sum(parts.values(), torch.zeros(()))
        loss.backward()
        history.add(state.step, loss=loss.item(), **{k: v.item() for k, v in parts.items()})
        state.advance()
        bar.set_postfix(loss=f"{history.recent('loss'):.3f}", refresh=False)
        if state.step % SAVE_EVERY == 0 or state.step == steps:
            state.save()
            history.save()
        if state.step % (10 * SAVE_EVERY) == 0 or state.step == steps:
            found = examine(state.average.module, phase, seed)
            tqdm.write(f"step {state.step}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))


@torch.no_grad()
def read_linearly(model: TowerTrainee, views: Dataset[Sample]) -> None:
    """Initialize the projection with the least-squares map from features to codes.

    Two units represent one linear function, because ``gelu(x) - gelu(-x)`` is x; some units are unused.
    """
    inputs, outputs = MERGED + 1, CODE
    within, across = torch.zeros(inputs, inputs), torch.zeros(inputs, outputs)
    for batch in DataLoader(views, 8, collate_fn=collate):
        with torch.autocast("cpu", torch.bfloat16):
            features = (model.tower(batch.pixels)[0] * SCALE).flatten(0, 1).float()
        features = functional.pad(features, (0, 1), value=1.0)
        told = batch.codes.flatten(0, 1)
        weighted = features * (SILENCE_MATTERS + told[:, :1] / PARTS["share"][1])
        within += weighted.T @ features
        across += weighted.T @ told
    ridge = 1e-3 * within.diagonal().mean() * torch.eye(inputs)
    set_reading(model.projection, torch.linalg.solve(within + ridge, across))


def set_reading(projection: nn.Sequential, reading: Tensor) -> None:
    """Make a projection compute ``reading`` of the features and a 1, ``(MERGED + 1, CODE)``."""
    first, last = projection[0], projection[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    silence = spoken(torch.zeros(CODE))
    voice = (spoken(torch.eye(CODE)) - silence).T
    last.weight.zero_()
    for units, sign in ((slice(CODE), 1), (slice(CODE, 2 * CODE), -1)):
        first.weight[units] = sign * reading[:-1].T
        first.bias[units] = sign * reading[-1]
        last.weight[:, units] = sign * voice
    last.bias.copy_(silence)


def trained(directory: Path) -> TowerTrainee:
    """The tower at the end of its training."""
    model = TowerTrainee(0)
    model.load_state_dict(averaged(directory / f"{TELLING.name}.pt"))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def examine(model: nn.Module, phase: Phase, seed: int, count: int = 256) -> dict[str, float]:
    """Accuracies on held-out pictures, of the heads at the centres of things and of the codes.

    The count is right if the shares add up to the number of things.
    """
    views = LabelledViews(seed, count, HELD_OUT, 0, phase.side)
    rights: dict[str, list[Tensor]] = {}
    for batch in DataLoader(views, phase.batch, collate_fn=collate):
        tokens, heads, _ = model(batch.pixels)
        for name, right in _rights(tokens, heads, batch).items():
            rights.setdefault(name, []).append(right.float())
    return {name: torch.cat(parts).mean().item() for name, parts in rights.items()}


def _rights(tokens: Tensor, heads: list[Tensor], batch: Sample) -> dict[str, Tensor]:
    marks, at = batch.labels, batch.labels.centre
    is_glyph = marks.thing[at] > len(SHAPES)
    right = heads[0][at].argmax(-1) == marks.thing[at]
    parts, true = by_part(heard(tokens[:, :-2])), by_part(batch.codes)
    loud = batch.codes[..., 0] > 0.7 * PARTS["share"][1]
    loud_glyph = marks.thing[loud] > len(SHAPES)
    said = parts["thing"][loud].argmax(-1) == true["thing"][loud].argmax(-1)
    shares = [part["share"][..., 0].sum(1) / PARTS["share"][1] for part in (parts, true)]
    place = (parts["x"][loud] - true["x"][loud])[:, 0] / PARTS["x"][1] / 2
    size = (parts["size"][loud] - true["size"][loud])[:, 0] / PARTS["size"][1]
    return {
        "shapes": right[~is_glyph],
        "glyphs": right[is_glyph],
        "colours": heads[1][at].argmax(-1) == marks.colour[at],
        "told shapes": said[~loud_glyph],
        "told glyphs": said[loud_glyph],
        "told colours": parts["colour"][loud].argmax(-1) == true["colour"][loud].argmax(-1),
        "told count": (shares[0] - shares[1]).abs() < 0.5,
        "x error": place.abs(),
        "size error": size.abs(),
    }
