"""Second stage: the decoder learns to answer, first from true codes, then from the tower's output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from model.phi3v.configuration import Phi3VConfig
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.rope import LongRope, RopeRegime, rotate
from scripts.demo_training.language.rows import IGNORED, Row, Rows, collate
from scripts.demo_training.network import new_model
from scripts.demo_training.optimizers import Optimizers
from scripts.demo_training.parallel import rank
from scripts.demo_training.progress import History
from scripts.demo_training.states import SAVE_EVERY, State
from scripts.demo_training.tower.cells import CELLS
from scripts.demo_training.tower.codes import CODE, spoken

SCENES = 1_000_000  # for training with true codes; none is drawn
LONG_SHARE = 0.12  # fraction of batches with LongRoPE's long factors
HEARD_AFTER = 2  # layers; the auxiliary loss applies after them
HEARING = 0.5  # weight of the auxiliary loss


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    Attributes:
        name: of its files.
        batch: rows per step and process.
        learning_rate: maximum.
        decay: fraction of the steps in which it decays.
    """

    name: str
    batch: int
    learning_rate: float
    decay: float


# First with true codes of a picture's cells, which needs no tower; then with the tower's output.
TOLD = Stage("told", 6, 1.5e-3, 0.5)
SEEN = Stage("seen", 4, 1.2e-3, 0.9)


class Speaker(nn.Module):
    """Runs a model's decoder on rows."""

    def __init__(self, model: Phi3VForCausalLM) -> None:
        super().__init__()
        self.embed, self.layers = model.model.embed_tokens, model.model.layers
        self.norm, self.head = model.model.norm, model.lm_head
        self.heard = nn.Linear(model.config.hidden_size, CODE)  # not in the checkpoint
        self._rope = LongRope(model.config)

    def forward(
        self, rows: Row, pictures: Tensor, regime: RopeRegime
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and targets of the tokens to train on, and the auxiliary loss at named things.

        Args:
            rows: a batch.
            pictures: ``(B, 146, hidden size)``: picture tokens of a view, and the separators of rows
                and of views.
            regime: of the rope factors.
        """
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self._embedded(rows, pictures)
            regimes = torch.full((rows.positions.numel(),), int(regime))
            cos, sin = (
                part.view(*rows.positions.shape, -1)
                for part in self._rope.cos_sin(rows.positions.flatten(), regimes, torch.bfloat16)
            )
            mask = _mask(rows.branch)
            error = torch.zeros(())
            for number, layer in enumerate(self.layers):
                if number == HEARD_AFTER:
                    error = self._misheard(hidden, rows)
                hidden = hidden + _attend(layer, layer.input_layernorm(hidden), cos, sin, mask)
                hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            learned = rows.targets != IGNORED
            logits = self.head(self.norm(hidden[learned])).float()
        return logits, rows.targets[learned], error

    def _misheard(self, hidden: Tensor, rows: Row) -> Tensor:
        named = rows.named >= 0
        true = rows.things.gather(1, rows.named.clamp(min=0)[..., None].expand(-1, -1, CODE))
        error = (self.heard(hidden[named]).float() - true[named]).square().sum(-1)
        return error.sum() / max(1, len(error)) / true.shape[-1]

    def _embedded(self, rows: Row, pictures: Tensor) -> Tensor:
        cells, line, between = pictures.split([CELLS * CELLS, 1, 1], 1)
        lines = line[:, :, None].expand(-1, CELLS, -1, -1)
        view = torch.cat([cells.unflatten(1, (CELLS, CELLS)), lines], 2).flatten(1, 2)
        picture = torch.cat([view, between, view], 1)  # the global view is the same pixels
        text = self.embed(rows.tokens.clamp(min=0))
        at = (-1 - rows.tokens).clamp(min=0)[..., None].expand(-1, -1, picture.shape[-1])
        return torch.where((rows.tokens < 0)[..., None], picture.gather(1, at).to(text.dtype), text)


def _mask(branch: Tensor) -> Tensor:
    """The attention mask ``(B, 1, T, T)``: -inf for later tokens and other branches."""
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


def train_language(
    directory: Path,
    stage: Stage,
    config: Phi3VConfig,
    pictures: Tensor | None,
    steps: int,
    seed: int,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Train or resume training, for ``steps`` in total.

    Args:
        directory: of the training state and the tokenizer.
        stage: the stage.
        config: of the model.
        pictures: ``(pictures, 146, hidden size)`` for ``Speaker``; None trains with true codes.
        steps: total steps.
        seed: of weights and questions.
        weights: initial weights, if any.
    """
    torch.manual_seed(seed)
    model = Speaker(new_model(config))
    if weights is not None:
        model.load_state_dict(weights)
    optimizers = Optimizers([model], steps, stage.learning_rate, warm_up=30, decay=stage.decay)
    history = History(directory / f"{stage.name}.csv")
    state = State(directory / f"{stage.name}.pt", model, optimizers)
    first, count = (
        state.step * stage.batch + rank() * 10**8,
        max(0, steps - state.step) * stage.batch,
    )
    known = SCENES if pictures is None else len(pictures)
    rows = Rows(directory, seed, known, first, count, told=pictures is None)
    batches = DataLoader(rows, stage.batch, num_workers=1, collate_fn=collate, prefetch_factor=4)
    bar = tqdm(
        batches if count else [],
        f"Language, {stage.name}",
        initial=state.step,
        total=steps,
        mininterval=2,
        disable=rank() > 0,
        position=1,
    )
    for batch in bar:
        generator = torch.Generator().manual_seed(state.step)
        long = float(torch.rand((), generator=generator)) < LONG_SHARE
        if pictures is None:
            seen = spoken(functional.pad(batch.told, (0, 0, 0, 2)))
        else:
            seen = pictures[batch.picture.clamp(min=0)]
        logits, targets, misheard = model(batch, seen, RopeRegime(int(long)))
        loss = functional.cross_entropy(logits, targets)
        (loss + HEARING * misheard).backward()
        wrong = (logits.argmax(-1) != targets).float().mean()
        history.add(state.step, loss=loss.item(), wrong=wrong.item(), misheard=misheard.item())
        state.advance()
        recent = {name: f"{history.recent(name):.4f}" for name in ("loss", "wrong", "misheard")}
        bar.set_postfix(recent, refresh=False)
        if rank() == 0 and (state.step % SAVE_EVERY == 0 or state.step == steps):
            state.save()
            history.save()
