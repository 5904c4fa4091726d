"""The engine as on a GPU, on the CPU: with a paged attention and graphs that stand in for CUDA's.

Where there is a GPU, the last test runs the real ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import varlen

from model.engine.config import EngineConfig, LoadOptions
from model.engine.engine import Engine, MakeRunner
from model.engine.execution.runner import Runner, make_runner
from model.engine.kv_cache.base import PagedCache
from model.engine.kv_cache.choice import block_size
from model.engine.kv_cache.cuda import CudaKVCache
from model.engine.loading.load import load_engine
from model.engine.request import SamplingParams, TextDelta
from model.engine.scheduling.pacing import Pacing
from model.engine.scheduling.scheduler import Chunk
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.decoder import Decoder, TorchDecoder
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.processing import Processor, PromptInputs
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.network import Network
from model.phi3v.rope import LongRope
from model.phi3v.transfer import to_device
from tests.support.cuda_stand_ins import Tape, paged_attention, refuses
from tests.support.oracle import greedy

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SIZES = EngineConfig(2048, max_num_seqs=6, prefill_chunk=100, num_blocks=600)
LENGTHS = [1, 17, 1018, 40, 1100, 300]  # the third crosses into the long regime


@pytest.fixture(autouse=True)
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Has the engine take the CPU for a GPU with stand-ins; these are the graphs it will make."""
    made: list[Tape] = []

    def make() -> Tape:
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr("model.engine.kv_cache.choice.on_cuda", lambda device: True)
    monkeypatch.setattr(varlen, "varlen_attn", paged_attention)
    monkeypatch.setattr("model.engine.execution.cuda_graphs.CudaCapture", make)
    return made


@pytest.fixture(scope="module", params=[4, 2], ids=["MHA", "GQA"])
def model(request: pytest.FixtureRequest, tiny: Path) -> Phi3VForCausalLM:
    if request.param == 4:
        return Phi3VForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    config = Phi3VConfig.from_pretrained(tiny)
    config.num_key_value_heads = request.param
    torch.manual_seed(0)
    return Phi3VForCausalLM(config).eval()


def make_engine(
    model: Phi3VForCausalLM, tiny: Path, make: MakeRunner = make_runner, **sizes: Any
) -> Engine:
    vision = model.model.vision_embed_tokens
    network = Network(model.config, TorchDecoder(model), vision, model.dtype)
    config = replace(SIZES, **sizes)
    # Which steps there are must not depend on the clock.
    pacing = Pacing(config.prefill_chunk, fixed=True)
    return Engine(network, Processor.from_checkpoint(tiny), frozenset(), config, make, pacing)


class Runners:
    """Makes an engine's runner, and a plain one that shares its cache."""

    cache: CudaKVCache
    fast: Runner
    plain: Runner

    def make(
        self, decoder: Decoder, cache: PagedCache, rope: LongRope, config: EngineConfig
    ) -> Runner:
        assert isinstance(cache, CudaKVCache)
        self.cache = cache
        self.plain = Runner(decoder, cache, rope, config.max_num_seqs * config.deterministic)
        self.fast = make_runner(decoder, cache, rope, config)
        assert self.fast.graph_rows
        return self.fast


def text_prompt(length: int) -> PromptInputs:
    generator = torch.Generator().manual_seed(length)
    return PromptInputs(torch.randint(300, 32000, (length,), generator=generator).tolist())


def run(engine: Engine, lengths: list[int]) -> list[list[int]]:
    """Greedy answers, token by token; prompt i arrives at step i."""
    answers: list[list[int]] = [[] for _ in lengths]
    waiting = list(enumerate(lengths))
    while waiting or engine.has_work:
        if waiting:
            i, length = waiting.pop(0)
            engine.add(i, text_prompt(length), GREEDY)
        for output in engine.step():
            assert isinstance(output.result, TextDelta), output.result
            answers[output.key[0]] += output.result.token_ids
    return answers


@pytest.fixture(scope="module")
def expected(model: Phi3VForCausalLM) -> list[list[int]]:
    """What ``generate`` answers, one prompt at a time."""
    answers = []
    for length in LENGTHS:
        ids = torch.tensor([text_prompt(length).token_ids])
        answers.append(greedy(model, ids, 12))
    return answers


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
def test_answers_are_those_of_generate(
    model: Phi3VForCausalLM,
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
    engine = make_engine(model, tiny)
    assert engine.describe().kv_cache == CudaKVCache.__name__
    assert run(engine, LENGTHS) == expected
    assert engine.scheduler.num_crossings == 1
    if graphs:
        assert not caplog.records
        (tape,) = tapes
        assert {1, 2, 4, 6} >= set(tape.played) > {1}
    else:
        assert caplog.messages == [
            "decoding runs without CUDA graphs and so slower: division by zero"
        ]


def test_a_capture_that_fails_midway_leaves_the_plain_path(
    model: Phi3VForCausalLM,
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
    engine = make_engine(model, tiny)
    assert "without CUDA graphs and so slower: CUDA error: operation not" in caplog.text
    assert run(engine, LENGTHS[:2]) == expected[:2]


def test_the_engine_runs_without_the_function(
    model: Phi3VForCausalLM,
    expected: list[list[int]],
    tiny: Path,
    tapes: list[Tape],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", refuses)
    engine = make_engine(model, tiny, block_size=block_size(torch.device("cpu")), num_blocks=60)
    assert run(engine, LENGTHS) == expected
    assert not tapes


def decode_step(engine: Engine, lengths: list[int]) -> list[Any]:
    """Prompts up to their first token, and the chunks that come next."""
    for i, length in enumerate(lengths):
        engine.add(i, text_prompt(length), replace(GREEDY, max_tokens=200))
    while not all(s.is_decoding for s in engine.scheduler.running) or engine.scheduler.waiting:
        engine.step()
    return engine.scheduler.schedule()


@torch.inference_mode()
def test_rows_that_fill_up_touch_nothing(
    model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape]
) -> None:
    runners = Runners()
    engine = make_engine(model, tiny, runners.make)
    cache = runners.cache
    chunks = decode_step(engine, [33, 16, 5])  # which takes a graph of four rows
    everything = (cache.keys, cache.values)
    slots = [
        (c.sequence.block_table[c.start // cache.block_size], c.start % cache.block_size)
        for c in chunks
    ]
    before = [x.clone() for x in everything]
    mine = sorted({block for c in chunks for block in c.sequence.block_table})
    for x in everything:  # nobody else's block may be read, nor what scratch rows left there
        x[:, [b for b in range(x.shape[1]) if b not in mine]] = torch.nan
    poisoned = [x.clone() for x in everything]
    found = runners.fast.run(chunks)
    assert tapes[-1].played[-1] == 4
    for x, old in zip(everything, poisoned, strict=True):
        changed = ((x != old) & ~(x.isnan() & old.isnan())).any(dim=(0, 3, 4)).nonzero().tolist()
        assert sorted(map(tuple, changed)) == sorted([*slots, (cache.scratch_block, 0)])
    for x, old in zip(everything, before, strict=True):
        x.copy_(old)
    torch.testing.assert_close(found, runners.plain.run(chunks))


@torch.inference_mode()
def test_logits_outlive_the_next_replay(model: Phi3VForCausalLM, tiny: Path) -> None:
    runners = Runners()
    chunks = decode_step(make_engine(model, tiny, runners.make), [20, 9])
    first = runners.fast.run(chunks)
    kept = first.clone()
    assert not torch.equal(runners.fast.run(chunks[::-1]), kept)
    assert torch.equal(first, kept)


def test_image_tokens_alone_in_a_chunk_go_the_plain_way(
    model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape]
) -> None:
    answers = []
    for chunk in (1, 512):
        engine = make_engine(model, tiny, prefill_chunk=chunk)
        picture = MessageImage(lambda: Image.new("RGB", (300, 300), "red"))
        prompt = engine.processor([Message("user", "look", (picture,))], 2000)
        engine.add(0, prompt, GREEDY)
        tokens: list[int] = []
        while engine.has_work:
            for output in engine.step():
                assert isinstance(output.result, TextDelta), output.result
                tokens += output.result.token_ids
        answers.append(tokens)
        text = sum(token >= 0 for token in prompt.token_ids)
        assert len(tapes[-1].played) == (text if chunk == 1 else 0) + 11
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("largest", "rows"), [(1, {1}), (2, {1, 2}), (5, {1, 2, 4, 5}), (8, {1, 2, 4, 8})]
)
def test_numbers_of_rows(
    model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape], largest: int, rows: set[int]
) -> None:
    make_engine(model, tiny, max_num_seqs=largest)
    assert tapes[-1].captured == sorted(rows, reverse=True)


def logits_of(engine: Engine, lengths: list[int], key: int) -> Tensor:
    """Logits of each step of one of several answers."""
    rows: list[Tensor] = []
    compute = Runner.run

    def keep(self: Runner, chunks: list[Chunk]) -> Tensor:
        logits_SV = compute(self, chunks)
        keys = [chunk.sequence.key[0] for chunk in chunks if chunk.num_sampled]
        rows.extend(logits_SV[[i for i, found in enumerate(keys) if found == key]])
        return logits_SV

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "run", keep)
        run(engine, lengths)
    return torch.stack(rows)


def test_deterministic_steps_have_one_shape(
    model: Phi3VForCausalLM, tiny: Path, tapes: list[Tape]
) -> None:
    """To the last bit of bfloat16, alone and in company."""
    half = Phi3VForCausalLM(model.config).eval()
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    alone = logits_of(make_engine(half, tiny, deterministic=True), [30], 0)
    company = logits_of(make_engine(half, tiny, deterministic=True), [7, 30, 150, 2], 1)
    assert alone.shape == (12, 32064)
    assert torch.equal(alone, company)
    assert tapes[-1].captured == [6]
    assert set(tapes[-1].played) == {6}


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("deterministic", [False, True])
def test_on_a_gpu(
    deterministic: bool,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Torch's own function passes the probe, and graphs agree with the plain path."""
    monkeypatch.undo()
    options = LoadOptions(
        "", dtype="bfloat16", device="cuda", max_model_len=2048, deterministic=deterministic
    )
    loaded = load_engine(tiny, options)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text
    runners = Runners()
    parts = (loaded.network, loaded.processor, loaded.stop_ids)
    engine = Engine(*parts, loaded.config, runners.make)
    assert loaded.describe().graph_rows == runners.fast.graph_rows
    with torch.inference_mode():
        chunks = decode_step(engine, LENGTHS)
        found = runners.fast.run(chunks)
        torch.testing.assert_close(found, runners.plain.run(chunks), atol=0.2, rtol=0.05)
    if deterministic:
        alone, company = (
            logits_of(load_engine(tiny, options), *x) for x in (([30], 0), ([7, 30, 900, 2], 1))
        )
        assert torch.equal(alone, company)
