"""The engine as on a GPU, on the CPU: kernels in Triton's interpreter, and stand-ins for CUDA graphs.

Where there is a GPU, ``scripts/gpu_check`` runs the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from model.engine.kv_cache.gpu import GpuKVCache
from model.engine.request import TextDelta
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.transfer import to_device
from tests.support.engines.gpu_engines import (
    GREEDY,
    LENGTHS,
    make_engine,
    run,
    text_prompt,
)
from tests.support.engines.gpu_stand_ins import Tape
from tests.support.engines.oracle import greedy

pytestmark = pytest.mark.usefixtures("tapes")


@pytest.fixture(scope="module")
def expected(gpu_model: Phi3VForCausalLM) -> list[list[int]]:
    """What ``generate`` answers, one prompt at a time."""
    answers = []
    for length in LENGTHS:
        ids = torch.tensor([text_prompt(length).token_ids])
        answers.append(greedy(gpu_model, ids, 12))
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
def test_answers_are_those_of_generate(
    gpu_model: Phi3VForCausalLM,
    expected: list[list[int]],
    tiny: Path,
    tapes: list[Tape],
    graphs: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Prefill chunks and single tokens mixed, both regimes, a crossing; at last singles alone."""
    if not graphs:
        monkeypatch.setattr("model.engine.execution.cuda_graphs.CudaCapture", lambda: 1 / 0)
    engine = make_engine(gpu_model, tiny)
    assert engine.describe().kv_cache == GpuKVCache.__name__
    assert run(engine, LENGTHS) == expected
    assert engine.scheduler.num_crossings == 1
    if graphs:
        assert not caplog.records
        (tape,) = tapes
        assert set(tape.played) > {1}
    else:
        assert caplog.messages == [
            "decoding without CUDA graphs, which is slower: division by zero"
        ]


def test_a_capture_that_fails_midway_leaves_the_plain_path(
    gpu_model: Phi3VForCausalLM,
    expected: list[list[int]],
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def capture(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        if len(compute()) < 6:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        return compute

    monkeypatch.setattr("model.engine.execution.cuda_graphs.CudaCapture", lambda: capture)
    engine = make_engine(gpu_model, tiny)
    assert "without CUDA graphs, which is slower: CUDA error: operation not" in caplog.text
    assert run(engine, LENGTHS[:2]) == expected[:2]


def test_deterministic_steps_without_graphs(
    gpu_model: Phi3VForCausalLM,
    expected: list[list[int]],
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on several GPUs, where a step is padded as it is in a graph."""
    monkeypatch.setattr("model.engine.execution.cuda_graphs.CudaCapture", lambda: 1 / 0)
    engine = make_engine(gpu_model, tiny, deterministic=True)
    assert run(engine, LENGTHS[:2]) == expected[:2]


@pytest.mark.slow
def test_image_tokens_go_without_a_graph(
    gpu_model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape]
) -> None:
    """In chunks that read the cache in place, and in one chunk."""
    answers = []
    for chunk in (16, 512):
        engine = make_engine(gpu_model, tiny, prefill_chunk=chunk)
        picture = MessageImage(lambda: Image.new("RGB", (300, 300), "red"))
        prompt = engine.processor([Message("user", "look", (picture,))], 2000)
        engine.add(0, prompt, GREEDY)
        tokens: list[int] = []
        while engine.has_work:
            for output in engine.step():
                assert isinstance(output.result, TextDelta), output.result
                tokens += output.result.token_ids
        answers.append(tokens)
        assert len(tapes[-1].played) >= 11
    assert answers[0] == answers[1]


def test_what_goes_to_a_gpu_goes_by_itself() -> None:
    class Watched:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def pin_memory(self) -> Watched:
            self.calls.append("pin")
            return self

        def to(self, device: torch.device, **how: bool) -> Watched:
            self.calls.append((device.type, how))
            return self

    for device, calls in (
        ("cuda", ["pin", ("cuda", {"non_blocking": True})]),
        ("cpu", [("cpu", {})]),
    ):
        watched: Any = Watched()
        to_device(watched, torch.device(device))
        assert watched.calls == calls
