"""The vision tower beside others: images that share a pass, and a pass that takes many steps."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import pytest
import torch

from model.engine.execution.embedding_cache import EmbeddingCache
from model.engine.execution.vision_runner import VisionRunner
from model.engine.request import TextDelta
from model.engine.scheduling.pacing import Pacing
from model.errors import StepFailedError
from tests.support.engines.engine_runs import GREEDY, MakeEngine, image_prompt, text_prompt
from tests.support.engines.queued_device import QueuedDevice


def test_an_image_that_fails_in_company_fails_alone(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images share a pass of the tower; the others' are computed again without the bad one."""
    monkeypatch.setattr(type(make_engine().network.vision), "crops_per_pass", 100)
    engine = make_engine(prefill_chunk=2048)
    in_parts = engine.network.vision.in_parts
    prompts = [image_prompt(engine, colour) for colour in ("red", "green", "blue")]
    (bad,) = prompts[1].decoded

    def sometimes(
        pixels: list[torch.Tensor], grids: list[tuple[int, int]]
    ) -> Generator[None, None, list[torch.Tensor]]:
        if any(torch.equal(p, bad.crops()) for p in pixels):
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
    assert isinstance(engine.vision, VisionRunner)


PART, SLICE = 0.004, 0.021  # seconds of the device


@pytest.mark.parametrize(("seconds", "parts"), [(SLICE, 5), (0.0, 1)])
def test_a_gpu_gets_no_more_parts_than_fit_the_slice(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, seconds: float, parts: int
) -> None:
    """Launching 60 parts would take the host a moment, and then all streams would wait for them."""
    engine, device = make_engine(), QueuedDevice()
    engine.add(0, image_prompt(engine, "red"), GREEDY)
    sequence = engine.scheduler.waiting[0]
    tower = engine.network.vision
    in_parts = tower.in_parts
    launched: list[int] = []

    def queued_parts(
        pixels: list[torch.Tensor], grids: list[tuple[int, int]]
    ) -> Generator[None, None, list[torch.Tensor]]:
        for _ in range(60):
            device.launch(PART, host=0.0001)
            launched[-1] += 1
            yield
        return (yield from in_parts(pixels, grids))

    monkeypatch.setattr(tower, "in_parts", queued_parts)
    runner = VisionRunner(tower, EmbeddingCache(0), False, device)
    while sum(launched) < 60:
        launched.append(0)
        begun = device.free
        runner.advance([sequence], seconds)
        assert device.free - device.host <= 2 * PART  # one is computed, one more is queued
        if len(launched) > 1:  # the first slice has to learn how long a part takes
            assert device.free - begun <= max(seconds, PART) + 0.001
            device.launch(0.005, host=0.001)  # a step, for which the host waits
        device.host = device.free
    assert set(launched[1:-1]) == {parts}
    while sequence.unseen_images:
        assert not runner.advance([sequence], seconds)
