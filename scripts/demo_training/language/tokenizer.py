"""The demo's tokenizer: Phi-3's format and control tokens, a vocabulary learned from its texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from model.demo.tokenizer_files import write_tokenizer
from model.phi3v.inputs.tokenizer import WORD_BOUNDARY
from scripts.demo_training.data.conversations import about_picture, without_picture
from scripts.demo_training.data.scenes import GLYPHS, random_scene

WORDS = 1100  # vocabulary without bytes and control tokens
CONVERSATIONS = 12_000


def write_demo_tokenizer(directory: Path, seed: int) -> None:
    """Learn the vocabulary and write the tokenizer's files."""
    write_tokenizer(directory, words=_learn(seed))


def _learn(seed: int) -> tuple[list[str], list[list[str]]]:
    """Characters and merges of a byte-pair encoding whose pieces do not cross words."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(WORD_BOUNDARY, "merged_with_next"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=WORDS, show_progress=False, special_tokens=[])
    learner.train_from_iterator(_texts(np.random.default_rng(seed)), trainer)
    spec = json.loads(learner.to_str())["model"]
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in spec["merges"]]
    made = {left + right for left, right in merges}
    characters = sorted(piece for piece in spec["vocab"] if piece not in made and piece != "\n")
    return characters, merges


def _texts(rng: np.random.Generator) -> Iterator[str]:
    for number in range(CONVERSATIONS):
        talk = without_picture(rng) if number % 8 == 0 else about_picture(rng, random_scene(rng))
        for exchange in talk:
            for text in (f"\n{exchange.user}", exchange.assistant):
                yield f"{WORD_BOUNDARY}{text.replace(' ', WORD_BOUNDARY)}"
    for glyph in GLYPHS:  # each alone, often enough to become a token
        yield from [f"{WORD_BOUNDARY}{glyph}"] * 200
    yield "".join(map(chr, range(33, 127)))
