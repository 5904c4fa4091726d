"""The vision tower beside others: images that share a pass, and a pass that takes many steps."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import pytest
import torch

from model.engine.execution import vision_runner
from model.engine.request import TextDelta
from model.engine.scheduling.pacing import Pacing
from model.errors import StepFailedError
from tests.support.engines.engine_runs import GREEDY, MakeEngine, image_prompt, text_prompt


def test_an_image_that_fails_in_company_fails_alone(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images share a pass of the tower; the others' are computed again without the bad one."""
    monkeypatch.setattr(type(make_engine().network.vision), "crops_per_pass", 100)
    engine = make_engine(prefill_chunk=2048)
    in_parts = engine.network.vision.in_parts
    prompts = [image_prompt(engine, colour) for colour in ("red", "green", "blue")]
    (bad,) = prompts[1].images

    def sometimes(
        pixels: list[torch.Tensor], grids: list[tuple[int, int]]
    ) -> Generator[None, None, list[torch.Tensor]]:
        if any(p is bad.pixels for p in pixels):
            raise RuntimeError("bad pixels")
        return (yield from in_parts(pixels, grids))

    monkeypatch.setattr(engine.network.vision, "in_parts", sometimes)
    for i, prompt in enumerate(prompts):
        engine.add(i, prompt, GREEDY)
    failed, finished = set(), set()
    while engine.has_work:
        for output in engine.step():
            if isinstance(output.result, StepFailedError):
                failed.add(output.key[0])
            elif isinstance(output.result, TextDelta) and output.result.finish_reason:
                finished.add(output.key[0])
    assert (failed, finished) == ({1}, {0, 2})


def test_the_tower_works_in_slices_beside_running_answers(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.add(0, text_prompt(10), replace(GREEDY, max_tokens=60))
    for _ in range(3):
        engine.step()
    monkeypatch.setattr(Pacing, "spare_seconds", lambda *_: 0.0)  # one part a step
    engine.add(1, image_prompt(engine, "red"), GREEDY)
    texts = 0
    while not engine.stats().images_computed:
        outputs = engine.step()
        texts += [output.key[0] for output in outputs] == [0]
    assert texts >= 3
    assert isinstance(engine.vision, vision_runner.VisionRunner)
