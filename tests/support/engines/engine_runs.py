"""Prompts for engines on the tiny checkpoint, and what engines answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from model.engine.engine import Engine
from model.engine.request import SamplingParams, TextDelta
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.processing import PromptInputs

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
BOUNDARY = 1024
MakeEngine = Callable[..., Engine]
Answers = dict[tuple[int, int], list[int]]


def resized(engine: Engine, **sizes: Any) -> Engine:
    """Another engine on the same network, with other sizes."""
    config = replace(engine.config, **sizes)
    return Engine(engine.network, engine.processor, engine.stop_ids, config)


def text_prompt(length: int, seed: int = 0) -> PromptInputs:
    generator = torch.Generator().manual_seed(seed * 100_000)
    ids = torch.randint(300, 32000, (2000,), generator=generator).tolist()
    return PromptInputs([1, *ids[: length - 1]])


def image_prompt(engine: Engine, colour: str, question: str = "look") -> PromptInputs:
    picture = MessageImage(lambda: Image.new("RGB", (300, 300), colour))
    return engine.processor([Message("user", question, (picture,))], 2000)


def run(engine: Engine, *requests: tuple[PromptInputs, SamplingParams]) -> Answers:
    answers: Answers = {}
    for i, (prompt, params) in enumerate(requests):
        engine.add(i, prompt, params)
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output.result, TextDelta), output.result
            answers.setdefault(output.key, []).extend(output.result.token_ids)
    assert engine.blocks.num_free == engine.blocks.num_blocks
    return answers
