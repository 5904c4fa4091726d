"""Training rows: one picture and many conversations about it, which do not attend to each other.

A row has a prefix (the tokens up to and including the picture) and branches that continue it, so that a
picture is computed once for all its questions. Tokens come from the server's chat template and
tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from model.phi3v.inputs.chat import ASSISTANT, Control, Message, MessageImage, Piece, render
from model.phi3v.inputs.tokenizer import Phi3VTokenizer
from scripts.demo_training.data.conversations import (
    Exchange,
    about_picture,
    before_picture,
    without_picture,
)
from scripts.demo_training.data.scenes import MOST_THINGS, Scene, random_scene
from scripts.demo_training.language.naming import NOBODY, Names
from scripts.demo_training.tower.cells import CELLS
from scripts.demo_training.tower.codes import CODE, codes, misheard, thing_codes

BRANCHES = 9
VIEW_TOKENS = CELLS * (CELLS + 1)
IMAGE_TOKENS = 2 * VIEW_TOKENS + 1  # one tile, a separator, and the global view
IGNORED = -100
WITHOUT_PICTURE = 0.07  # fraction of rows
LATER_PICTURE = 0.2  # fraction of rows with exchanges before the picture


@dataclass(frozen=True)
class Row:
    """A row, or a stacked batch of rows.

    Attributes:
        picture: number of its scene, or -1.
        tokens: ids; negative ones are picture tokens, ``-1 - n`` the n-th.
        positions: of the tokens in their conversation.
        branch: 0 for the prefix, then 1, 2, ...; -1 for padding.
        targets: next tokens to train on.
        named: index of the thing that a token names, or -1.
        told: codes of the picture's cells, ``(144, CODE)``; empty if a tower computes them.
        things: code of each thing, ``(MOST_THINGS, CODE)``.
    """

    picture: Tensor
    tokens: Tensor
    positions: Tensor
    branch: Tensor
    targets: Tensor
    named: Tensor
    told: Tensor
    things: Tensor


class Rows(torch.utils.data.Dataset[Row]):
    """A dataset of rows.

    Args:
        tokenizer: directory of the tokenizer's files.
        seed: of scenes (the same as for their features) and questions.
        pictures: number of pictures.
        first, count: which rows.
        told: use true codes, for training without a tower, and omit most empty cells.
    """

    def __init__(
        self,
        tokenizer: Path,
        seed: int,
        pictures: int,
        first: int,
        count: int,
        told: bool,
    ) -> None:
        self._directory, self._seed, self._pictures = tokenizer, seed, pictures
        self._first, self._count, self._told = first, count, told
        self._texts: _Texts | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        if self._texts is None:
            self._texts = _Texts(self._directory)
        rng = np.random.default_rng((self._seed, 1, self._first + index))
        if rng.random() < WITHOUT_PICTURE:
            talks = [without_picture(rng) for _ in range(BRANCHES)]
            nothing = torch.zeros(CELLS * CELLS if self._told else 0, CODE)
            return _row(self._texts, -1, None, [], talks, None, nothing)
        picture = int(rng.integers(self._pictures))
        scene = scene_of(self._seed, picture)
        before = before_picture(rng) if rng.random() < LATER_PICTURE else []
        talks = [about_picture(rng, scene) for _ in range(BRANCHES)]
        kept, told = np.arange(IMAGE_TOKENS), torch.zeros(0, CODE)
        if self._told:
            true = codes(scene)
            kept, told = _thinned(rng, true), misheard(rng, true)
        return _row(self._texts, picture, scene, before, talks, kept, told)


def scene_of(seed: int, number: int) -> Scene:
    """The scene of a picture of the second stage."""
    return random_scene(np.random.default_rng((seed, 0, number)))


def _thinned(rng: np.random.Generator, told: Tensor) -> np.ndarray:
    """Picture tokens to keep in training without a tower: those with a code, and a few more.

    This halves a row's length. Positions do not change.
    """
    speaks = told.view(CELLS, CELLS, -1)[..., 0].numpy() > 0
    view = np.pad(speaks, ((0, 0), (0, 1))).flatten()  # separators end the rows
    kept = np.concatenate([view, [False], view])  # the tile, a separator, the global view
    silent = rng.choice([0.02, 0.1, 0.4], p=[0.5, 0.3, 0.2])
    return np.flatnonzero(kept | (rng.random(kept.shape) < silent))


class _Texts:
    """A tokenizer and the things that its tokens name."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = Phi3VTokenizer(directory)
        self.names = Names(self.tokenizer)


def _row(
    texts: _Texts,
    picture: int,
    scene: Scene | None,
    before: list[Exchange],
    talks: Sequence[list[Exchange]],
    kept: np.ndarray | None,
    told: Tensor,
) -> Row:
    tokenizer = texts.tokenizer
    tokens: list[int] = []
    positions: list[int] = []
    branch: list[int] = []
    targets: list[int] = []
    named: list[int] = []
    start = 0
    for number, talk in enumerate(talks, 1):
        pieces = render(_messages(before, talk, kept is not None)).pieces
        if number == 1 and kept is not None:
            tokens = tokenizer.encode(pieces[0])
            positions = [*range(len(tokens)), *(len(tokens) + kept).tolist()]
            start = len(tokens) + IMAGE_TOKENS
            tokens = [*tokens, *(-1 - kept).tolist()]
            branch, targets = [0] * len(tokens), [IGNORED] * len(tokens)
            named = [NOBODY] * len(tokens)
        ids, learned = _encode(tokenizer, pieces[-1], talk)
        tokens += ids
        positions += range(start, start + len(ids))
        branch += [number] * len(ids)
        targets += learned
        named += texts.names.named(ids, scene) if scene else [NOBODY] * len(ids)
    things = thing_codes(scene) if scene else torch.zeros(MOST_THINGS, CODE)
    return Row(
        torch.tensor(picture),
        torch.tensor(tokens),
        torch.tensor(positions),
        torch.tensor(branch),
        torch.tensor(targets),
        torch.tensor(named),
        told,
        things,
    )


def _messages(before: list[Exchange], talk: list[Exchange], picture: bool) -> list[Message]:
    image = MessageImage(open=_unopened)
    messages = []
    for number, exchange in enumerate([*before, *talk]):
        images = (image,) if picture and number == len(before) else ()
        messages.append(Message("user", exchange.user, images))
        messages.append(Message("assistant", exchange.assistant))
    return messages


def _unopened() -> Image:
    raise AssertionError("only the place of the picture matters here")


def _encode(
    tokenizer: Phi3VTokenizer, piece: Piece, talk: list[Exchange]
) -> tuple[list[int], list[int]]:
    """Ids of a piece without the turn after it, and the target ids within answers."""
    ends = [i for i, part in enumerate(piece) if part == Control(ASSISTANT)][: len(talk)]
    last = ends[-1] + 3  # the answer and <|end|>
    ids = tokenizer.encode(piece[:last])
    targets = [IGNORED] * len(ids)
    for at, exchange in zip(ends, talk, strict=True):
        if exchange.taught:
            begin = len(tokenizer.encode(piece[: at + 1]))
            end = len(tokenizer.encode(piece[: at + 3]))
            targets[begin - 1 : end - 1] = ids[begin:end]
    return ids, targets


def collate(rows: list[Row]) -> Row:
    """Pad and stack rows."""
    length = -(-max(len(row.tokens) for row in rows) // 16) * 16

    def stacked(name: str, padding: int) -> Tensor:
        out = torch.full((len(rows), length), padding)
        for i, row in enumerate(rows):
            column = getattr(row, name)
            out[i, : len(column)] = column
        return out

    return Row(
        torch.stack([row.picture for row in rows]),
        stacked("tokens", 0),
        stacked("positions", 0),
        stacked("branch", -1),
        stacked("targets", IGNORED),
        stacked("named", NOBODY),
        torch.stack([row.told for row in rows]),
        torch.stack([row.things for row in rows]),
    )
