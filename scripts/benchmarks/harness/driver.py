"""Drive an engine like concurrent clients, and record when each token arrives."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from model.engine.config import LoadOptions
from model.engine.engine import Engine
from model.engine.loading.load import load_engine
from model.engine.request import SamplingParams, TextDelta
from model.phi3v.inputs.processing import PromptInputs


@dataclass
class Answer:
    """One answer and the times of its tokens, by ``time.perf_counter``."""

    asked: float
    token_ids: list[int] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.stamps[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [after - before for before, after in pairwise(self.stamps)]


def load(directory: Path, dtype: str, max_model_len: int = 4096, **changes: Any) -> Engine:
    """Load an engine; prefix caching and prompt lookup are off unless set in ``changes``."""
    plain: dict[str, Any] = {"dtype": dtype, "prefix_caching": False, "prompt_lookup": False}
    sizes = {"max_model_len": max_model_len, **plain, **changes}
    return load_engine(directory, LoadOptions(model=str(directory), **sizes))


def greedy(new_tokens: int) -> SamplingParams:
    """Greedy decoding of exactly ``new_tokens`` tokens."""
    return SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)


def random_prompts(count: int, length: int, seed: int) -> list[PromptInputs]:
    """Distinct prompts of random text tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(300, 32000, (count, length), generator=generator)
    return [PromptInputs(row) for row in ids.tolist()]


def answer(
    engine: Engine,
    prompts: Sequence[PromptInputs],
    params: SamplingParams,
    concurrency: int | None = None,
) -> list[Answer]:
    """Answer all prompts, at most ``concurrency`` (default: all) at a time."""
    answers: dict[int, Answer] = {}

    def ask() -> None:
        number = len(answers)
        if number < len(prompts):
            answers[number] = Answer(time.perf_counter())
            engine.add(number, prompts[number], params)

    for _ in range(concurrency or len(prompts)):
        ask()
    while engine.has_work:
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            delta = output.result
            if not isinstance(delta, TextDelta):
                raise delta
            current = answers[output.key[0]]
            current.token_ids += delta.token_ids
            current.stamps += [now] * len(delta.token_ids)
            if delta.finish_reason is not None:
                ask()
    return list(answers.values())
