"""Second stage: the decoder and the projection learn to answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from model.phi3v.configuration import Phi3VConfig
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.rope import LongRope, RopeRegime, rotate
from model.phi3v.vision import MERGE
from scripts.demo_training.network import TOWER, new_model, tower_features
from scripts.demo_training.optimizers import MovingAverage, Optimizers
from scripts.demo_training.parallel import processes, rank, wait_for_all
from scripts.demo_training.progress import History
from scripts.demo_training.rows import IGNORED, Row, Rows, collate, scene_of
from scripts.demo_training.views import CELLS, KNOWN, known_cells, normalise, view

BATCH = 6  # rows per step and process
SCENES = 1_000_000  # that it is told about; none is drawn
SAVE_EVERY = 50
LONG_SHARE = (
    0.12  # of the batches; they use the long factors, as conversations past 4,096 tokens do
)


@dataclass(frozen=True)
class Stage:
    """A stretch of training.

    Attributes:
        name: of its files.
        thin: leave out what repeats in a picture.
        learning_rate: at its highest.
        decay: share of the steps in which it falls.
    """

    name: str
    thin: bool
    learning_rate: float
    decay: float


# First it is told what is in a picture's cells, which needs no tower; then it sees.
TOLD = Stage("told", True, 3.5e-3, 0.3)
SEEN = Stage("seen", False, 1.2e-3, 0.9)


class Speaker(nn.Module):
    """Projection and decoder of a model, run on rows."""

    def __init__(self, model: Phi3VForCausalLM) -> None:
        super().__init__()
        embedding = model.model.vision_embed_tokens
        self.projection = embedding.img_projection
        self.glb_GN, self.sub_GN = embedding.glb_GN, embedding.sub_GN
        self.embed, self.layers = model.model.embed_tokens, model.model.layers
        self.norm, self.head = model.model.norm, model.lm_head
        self._rope = LongRope(model.config)

    def forward(self, rows: Row, features: Tensor, regime: RopeRegime) -> tuple[Tensor, Tensor]:
        """Logits and targets of the tokens to learn.

        Args:
            rows: a batch.
            features: ``(B, 144, 4 W)``, merged patches of the rows' pictures.
            regime: which rope factors to use.
        """
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self._embedded(rows, features)
            regimes = torch.full((rows.positions.numel(),), int(regime))
            cos, sin = (
                part.view(*rows.positions.shape, -1)
                for part in self._rope.cos_sin(rows.positions.flatten(), regimes, torch.bfloat16)
            )
            mask = _mask(rows.branch)
            for layer in self.layers:
                hidden = hidden + _attend(layer, layer.input_layernorm(hidden), cos, sin, mask)
                hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            learned = rows.targets != IGNORED
            return self.head(self.norm(hidden[learned])).float(), rows.targets[learned]

    def _embedded(self, rows: Row, features: Tensor) -> Tensor:
        count, _, width = features.shape
        cells = features.view(count, CELLS, CELLS, width)
        separators = self.sub_GN.expand(count, CELLS, 1, width)
        tile = torch.cat([cells, separators.to(cells.dtype)], 2).flatten(1, 2)
        between = self.glb_GN.expand(count, 1, width).to(cells.dtype)
        projected = self.projection(torch.cat([tile, between], 1))
        picture = torch.cat([projected, projected[:, :-1]], 1)  # the global view is the same pixels
        text = self.embed(rows.tokens.clamp(min=0))
        at = (-1 - rows.tokens).clamp(min=0)[..., None].expand(-1, -1, picture.shape[-1])
        return torch.where((rows.tokens < 0)[..., None], picture.gather(1, at).to(text.dtype), text)


def _mask(branch: Tensor) -> Tensor:
    """What each token must not see, as -inf: later ones and other branches; ``(B, 1, T, T)``."""
    same = branch[:, :, None] == branch[:, None]
    seen = (same | (branch == 0)[:, None]).tril()
    seen |= torch.eye(branch.shape[1], dtype=torch.bool)
    return torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen, float("-inf"))[:, None]


def _attend(layer: Any, normed: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    attention = layer.self_attn
    qkv = attention.qkv_proj(normed).unflatten(-1, (3, -1, attention.head_dim))
    q, k, v = qkv.unbind(2)
    shape = q.shape
    q, k = (
        rotate(part.flatten(0, 1), cos.flatten(0, 1), sin.flatten(0, 1)).view(shape).transpose(1, 2)
        for part in (q, k)
    )
    scores = q * shape[-1] ** -0.5 @ k.transpose(-1, -2) + mask
    mixed = scores.softmax(-1, dtype=scores.dtype) @ v.transpose(1, 2)
    return attention.o_proj(mixed.transpose(1, 2).flatten(2))


@torch.no_grad()
def remember_features(tower: Any, directory: Path, seed: int, count: int) -> Tensor:
    """Features of the first ``count`` pictures, computed once and kept in a file.

    Each process computes its share of them, and all read the whole.
    """
    width = MERGE * MERGE * tower.config.hidden_size
    size = count * CELLS * CELLS * width
    kept = torch.from_file(str(directory / "features.bin"), True, size, dtype=torch.bfloat16)
    kept = kept.view(count, CELLS * CELLS, width)
    share = -(-count // processes())
    first, end = rank() * share, min((rank() + 1) * share, count)
    done_path = directory / f"features-{rank()}-of-{processes()}.done"
    done = int(done_path.read_text()) if done_path.exists() else first
    batches = DataLoader(_Views(seed, done, end), 16, prefetch_factor=None) if done < end else []
    for views in tqdm(batches, "Features", mininterval=2, disable=rank() > 0):
        with torch.autocast("cpu", torch.bfloat16):
            features = tower_features(tower, normalise(views))
        kept[done : done + len(views)] = features
        done += len(views)
        done_path.write_text(str(done))
    wait_for_all()
    return kept


class _Views(torch.utils.data.Dataset[Tensor]):
    def __init__(self, seed: int, first: int, end: int) -> None:
        self._seed, self._first, self._end = seed, first, end

    def __len__(self) -> int:
        return self._end - self._first

    def __getitem__(self, index: int) -> Tensor:
        number = self._first + index
        rng = np.random.default_rng((self._seed, 2, number))
        return view(rng, scene_of(self._seed, number))


def train_language(
    directory: Path,
    stage: Stage,
    config: Phi3VConfig,
    features: Tensor | None,
    steps: int,
    seed: int,
    weights: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Train, or go on training, for ``steps`` in all; the averaged weights of the ``Speaker``.

    Args:
        directory: holds all that is needed to go on, and the tokenizer.
        stage: on what.
        config: of the model.
        features: of the pictures; without them it is told what is in their cells.
        steps: how long.
        seed: of weights and questions.
        weights: to start from.
    """
    torch.manual_seed(seed)
    model = Speaker(new_model(config))
    if weights is not None:
        model.load_state_dict(weights)
    average = MovingAverage(model)
    optimizers = Optimizers([model], steps, stage.learning_rate, warm_up=30, decay=stage.decay)
    history = History(directory / f"{stage.name}.csv")
    state_path, step = directory / f"{stage.name}.pt", 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=False)
        model.load_state_dict(state["model"])
        average.module.load_state_dict(state["average"])
        optimizers.load_state_dict(state["optimizers"])
        step = average.seen = state["step"]
    first, count = step * BATCH + rank() * 10**8, max(0, steps - step) * BATCH
    pictures = SCENES if features is None else len(features)
    rows = Rows(directory, seed, pictures, first, count, stage.thin, told=features is None)
    batches = DataLoader(rows, BATCH, num_workers=1, collate_fn=collate, prefetch_factor=4)
    bar = tqdm(
        batches if count else [],
        f"Language, {stage.name}",
        initial=step,
        total=steps,
        mininterval=2,
        disable=rank() > 0,
    )
    for batch in bar:
        generator = torch.Generator().manual_seed(step)
        long = float(torch.rand((), generator=generator)) < LONG_SHARE
        seen = lift(batch.known) if features is None else features[batch.picture.clamp(min=0)]
        logits, targets = model(batch, seen, RopeRegime(int(long)))
        loss = functional.cross_entropy(logits, targets)
        loss.backward()
        optimizers.step(step)
        average.update(model)
        wrong = (logits.argmax(-1) != targets).float().mean()
        history.add(step, loss=loss.item(), wrong=wrong.item())
        bar.set_postfix(
            loss=f"{history.recent('loss'):.4f}", wrong=f"{history.recent('wrong'):.4f}"
        )
        step += 1
        if rank() == 0 and (step % SAVE_EVERY == 0 or step == steps):
            state = {
                "model": model.state_dict(),
                "average": average.module.state_dict(),
                "optimizers": optimizers.state_dict(),
                "step": step,
            }
            torch.save(state, state_path.with_suffix(".new"))
            state_path.with_suffix(".new").rename(state_path)
            history.save()
    return dict(average.module.state_dict())


def averaged(directory: Path, stage: Stage) -> dict[str, Tensor]:
    """The averaged weights at the end of a stage."""
    return dict(torch.load(directory / f"{stage.name}.pt", weights_only=False)["average"])


def lift(known: Tensor) -> Tensor:
    """What is known of cells, in the tower's width: as if a tower had seen it."""
    generator = torch.Generator().manual_seed(0)
    width = MERGE * MERGE * int(TOWER["hidden_size"])
    return known @ torch.randn(KNOWN, width, generator=generator) * 0.5


def learn_to_see(
    config: Phi3VConfig, told: dict[str, Tensor], features: Tensor, seed: int, steps: int = 600
) -> dict[str, Tensor]:
    """Replace the projection of what it was told by one of what the tower sees, with equal results."""
    torch.manual_seed(seed)
    teacher, pupil = Speaker(new_model(config)), Speaker(new_model(config))
    teacher.load_state_dict(told)
    kept = {name: weight for name, weight in told.items() if not name.startswith("projection.0")}
    pupil.load_state_dict(kept, strict=False)
    optimizers = Optimizers([pupil.projection], steps, 3e-3, warm_up=20, decay=0.7)
    rng = np.random.default_rng(seed)
    scenes = [scene_of(seed, number) for number in range(len(features))]
    known = torch.stack([known_cells(rng, scene, noise=0.0) for scene in scenes])
    weight = 0.15 + (known[..., :1] < 0.5).float()
    for step in tqdm(range(steps), "Learning to see", mininterval=2):
        chosen = torch.from_numpy(rng.integers(len(features), size=24))
        with torch.no_grad():
            wanted = teacher.projection(lift(known[chosen]))
        given = pupil.projection(features[chosen].float())
        loss = ((given - wanted).square() * weight[chosen]).mean()
        loss.backward()
        optimizers.step(step)
    # The separators go through the projection as well: find what gives the same.
    for name in ("sub_GN", "glb_GN"):
        mine, theirs = getattr(pupil, name), getattr(teacher, name)
        adam = torch.optim.Adam([mine], 0.03)
        for _ in range(300):
            adam.zero_grad()
            target = teacher.projection(theirs).detach()
            (pupil.projection(mine) - target).square().mean().backward()
            adam.step()
    return dict(pupil.state_dict())
