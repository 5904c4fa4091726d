"""Answers are the same to the last bit, and computed the same way, whatever the company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.engine.config import LoadOptions
from model.engine.engine import Engine
from model.engine.execution.runner import Runner
from model.engine.loading.load import load_engine
from model.engine.request import TextDelta
from model.engine.scheduling.chunk import Chunk
from model.phi3v.inputs.processing import PromptInputs
from tests.support.engines.engine_runs import BOUNDARY, GREEDY, image_prompt, run, text_prompt
from tests.support.engines.without_kernels import without_kernels


@pytest.mark.parametrize(("kernels", "deterministic"), [(True, True), (True, False), (False, True)])
def test_bfloat16_to_the_last_bit(
    tiny: Path, kernels: bool, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log probabilities too, alone and in company: by the CPU's kernels always, by torch if asked."""
    if not kernels:
        without_kernels(monkeypatch)
    engine = load_engine(
        tiny, LoadOptions("", dtype="bfloat16", max_model_len=2048, deterministic=deterministic)
    )
    if kernels and not engine.network.decoder.batch_invariant:
        pytest.skip("this CPU multiplies faster, or only, without the kernels")
    prompts = [text_prompt(length, i) for i, length in enumerate((700, 30, 100, BOUNDARY - 3))]
    together = collect(engine, prompts)
    for i, prompt in enumerate(prompts):
        assert collect(engine, [prompt])[0] == together[i]


def collect(engine: Engine, prompts: list[PromptInputs]) -> list[list[tuple[object, ...]]]:
    """Token ids and log probabilities of each answer; a prompt arrives at every other step."""
    found: list[list[tuple[object, ...]]] = [[] for _ in prompts]
    step = 0
    while engine.has_work or step < 2 * len(prompts):
        if step % 2 == 0 and step // 2 < len(prompts):
            engine.add(step // 2, prompts[step // 2], replace(GREEDY, logprobs=5))
        for output in engine.step():
            assert isinstance(output.result, TextDelta)
            found[output.key[0]].append((output.result.token_ids, output.result.logprobs))
        step += 1
    return found


@pytest.mark.parametrize("what", ["prompts at once", "preemption", "pictures"])
def test_what_is_computed_together_does_not_depend_on_company(
    tiny: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each answer the same chunks, whatever else there is to do."""
    engine = load_engine(
        tiny, LoadOptions("", dtype="float32", max_model_len=2048, deterministic=True)
    )
    if what == "preemption":
        config = replace(engine.config, num_blocks=2048 // engine.config.block_size)
        engine = Engine(engine.network, engine.processor, engine.stop_ids, config)
    prompts = {
        "prompts at once": [text_prompt(length, length) for length in (600, 324, 30, 513)],
        "preemption": [text_prompt(length, length) for length in (990, 980, 20)],
        "pictures": [
            image_prompt(engine, colour, "look " * 600) for colour in ("red", "blue", "red")
        ],
    }[what]
    chunks: list[tuple[int, int, int]] = []
    compute = Runner.run

    def record(self: Runner, given: list[Chunk]) -> torch.Tensor:
        chunks.extend((c.sequence.key[0], c.start, c.end) for c in given)
        return compute(self, given)

    monkeypatch.setattr(Runner, "run", record)
    answers = run(engine, *((prompt, replace(GREEDY, max_tokens=40)) for prompt in prompts))
    assert (engine.stats().preemptions > 0) == (what == "preemption")
    together = set(chunks)
    for i, prompt in enumerate(prompts):
        chunks.clear()
        assert run(engine, (prompt, replace(GREEDY, max_tokens=40)))[0, 0] == answers[i, 0]
        assert {(i, start, end) for _, start, end in chunks} == {c for c in together if c[0] == i}
