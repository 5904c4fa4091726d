"""The engine against the golden tokens: alone, and all cases in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.engine.config import LoadOptions
from model.engine.engine import Engine
from model.engine.loading.load import load_engine
from model.engine.request import SamplingParams, TextDelta
from model.phi3v.decoder import TorchDecoder
from tests.support.engines.golden_data import CASES, golden_inputs
from tests.support.engines.without_kernels import without_kernels

GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)


def answers(engine: Engine, cases: list[dict[str, Any]], golden: Path) -> list[list[int]]:
    for i, case in enumerate(cases):
        engine.add(i, golden_inputs(case, golden), GREEDY)
    tokens: list[list[int]] = [[] for _ in cases]
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output.result, TextDelta)
            tokens[output.key[0]] += output.result.token_ids
    return tokens


@pytest.fixture(scope="module", params=[100, 512, 8192, "without kernels", "without products"])
def engine(request: pytest.FixtureRequest, golden: Path) -> Engine:
    """With chunks of several sizes, and as on machines that some or all CPU kernels do not suit."""
    chunk = request.param if isinstance(request.param, int) else 512
    options = LoadOptions(model="", dtype="float32", prefill_chunk=chunk)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "without kernels":
            without_kernels(patch)
        if request.param == "without products":
            patch.setattr("model.cpu.linear.microkernel.supported", lambda bfloat16: False)
        engine = load_engine(golden / "tiny-phi3v", options)
    if isinstance(request.param, str):
        assert isinstance(engine.network.decoder, TorchDecoder)
    return engine


@pytest.mark.parametrize("name", CASES)
def test_alone(name: str, engine: Engine, golden: Path, golden_cases: list[dict[str, Any]]) -> None:
    case = next(case for case in golden_cases if case["name"] == name)
    assert answers(engine, [case], golden) == [case["greedy_no_cache"]]


def test_all_in_one_batch(engine: Engine, golden: Path, golden_cases: list[dict[str, Any]]) -> None:
    expected = [case["greedy_no_cache"] for case in golden_cases]
    assert answers(engine, golden_cases, golden) == expected
