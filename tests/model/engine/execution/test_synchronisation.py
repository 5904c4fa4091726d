"""A step on a GPU waits for the device once, to copy its tokens back.

There is no GPU here, so operations that would wait on one raise instead: reading numbers from a tensor,
deciding on one, and indexing with lists, which are copied to the device. In between, Triton's
interpreter and what happens after the copy may do so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.engine.execution.runner import Runner
from model.engine.request import SamplingParams, TextDelta
from model.engine.sampling import logits_processors, sampler
from model.gpu.launch import Launch, intercepted
from model.phi3v import transfer
from model.phi3v.modeling import Phi3VForCausalLM
from tests.support.engines.gpu_engines import GREEDY, make_engine, text_prompt
from tests.support.engines.gpu_stand_ins import Tape

READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "nonzero")
EVERYTHING = [
    GREEDY,
    replace(GREEDY, temperature=0.7, seed=1),
    replace(GREEDY, temperature=1.0, seed=2, top_p=0.9, top_k=40),
    replace(GREEDY, temperature=1.0, seed=3, min_p=0.1),
    replace(GREEDY, logprobs=3),
    replace(
        GREEDY,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        repetition_penalty=1.2,
        logit_bias={5: 3.0},
        min_tokens=2,
        ignore_eos=False,
    ),
]


class Watch:
    """Refuses operations that wait, between the begin of a step and its copy back."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.copies = 0
        self._armed = False
        self._patch = patch
        for name in READS:
            patch.setattr(Tensor, name, self._refusing(name, getattr(Tensor, name)))
        for name in ("__getitem__", "__setitem__"):
            patch.setattr(Tensor, name, self._without_lists(name, getattr(Tensor, name)))
        run, to_host = Runner.run, transfer.to_host

        def begin(runner: Runner, chunks: Any) -> Tensor:
            self._armed = True
            return run(runner, chunks)

        def copy_back(*tensors: Tensor) -> list[Tensor]:
            self._armed = False
            self.copies += 1
            return to_host(*tensors)

        patch.setattr(Runner, "run", begin)
        patch.setattr(sampler, "to_host", copy_back)

    @contextmanager
    def interpreting(self) -> Iterator[None]:
        """Let kernels do what they like."""

        def disarmed(launch: Launch) -> None:
            armed, self._armed = self._armed, False
            launch.run()
            self._armed = armed

        with intercepted(disarmed):
            yield

    def _refusing(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            assert not self._armed, f"Tensor.{name} waits for the device"
            return method(tensor, *args, **kwargs)

        return call

    def _without_lists(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor, index: Any, *args: Any) -> Any:
            parts = index if isinstance(index, tuple) else (index,)
            for part in parts:
                waits = isinstance(part, list) or (
                    isinstance(part, Tensor) and part.dtype == torch.bool
                )
                assert not (self._armed and waits), f"Tensor.{name} waits for the device"
            return method(tensor, index, *args)

        return call


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("params", [[each] for each in EVERYTHING] + [EVERYTHING])
def test_a_step_waits_once(
    params: list[SamplingParams],
    gpu_model: Phi3VForCausalLM,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model.engine.execution.cuda_graphs.CudaCapture", lambda: 1 / 0)
    engine = make_engine(gpu_model, tiny)
    watch = Watch(monkeypatch)
    for key, each in enumerate(params):
        engine.add(key, text_prompt(8 + key), replace(each, max_tokens=3))
    with watch.interpreting():
        for step in range(1, 4):
            outputs = engine.step()
            assert len(outputs) == len(params)
            assert all(isinstance(output.result, TextDelta) for output in outputs)
            assert watch.copies == step
    assert not engine.has_work


def test_a_graph_is_launched_without_waiting(
    gpu_model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(gpu_model, tiny, max_num_seqs=2)
    watch = Watch(monkeypatch)
    for key in range(2):
        engine.add(key, text_prompt(20 + key), replace(GREEDY, max_tokens=3))
    with watch.interpreting():
        while engine.has_work:
            engine.step()
    assert len(tapes[-1].played) == 2
    assert watch.copies == 3


@pytest.mark.parametrize(
    "wait",
    [
        lambda logits: logits[0, 0].item(),
        lambda logits: logits.argmax(-1).tolist(),
        lambda logits: bool((logits > 0).any()),
        lambda logits: logits[[0]],
        lambda logits: logits[logits[:, 0] > 0],
    ],
)
def test_what_waits_is_noticed(
    wait: Callable[[Tensor], Any],
    gpu_model: Phi3VForCausalLM,
    tiny: Path,
    tapes: list[Tape],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine(gpu_model, tiny, max_num_seqs=1)
    watch = Watch(monkeypatch)
    process = logits_processors.process

    def waiting(logits_SV: Tensor, sequences: Any) -> Tensor:
        wait(logits_SV)
        return process(logits_SV, sequences)

    monkeypatch.setattr(sampler, "process", waiting)
    engine.add(0, text_prompt(20), GREEDY)
    with watch.interpreting():
        (output,) = engine.step()
    assert not isinstance(output.result, TextDelta)
    assert "waits for the device" in str(output.result.__cause__)
