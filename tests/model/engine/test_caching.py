"""What is computed once is not computed again, and never taken for something else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.engine.config import LoadOptions
from model.engine.engine import Engine
from model.engine.execution import vision_runner
from model.engine.execution.embedding_cache import EmbeddingCache
from model.engine.loading.load import load_engine
from model.engine.request import Output, SamplingParams, TextDelta
from model.engine.scheduling.scheduler import Chunk
from model.errors import StepFailedError
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.processing import PromptInputs
from tests.support.without_kernels import without_kernels

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
BOUNDARY = 1024
MakeEngine = Callable[..., Engine]
Answers = dict[tuple[int, int], list[int]]


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


def cached_tokens(engine: Engine, prompt: PromptInputs) -> int:
    before = engine.stats().totals.cached_tokens
    run(engine, (prompt, GREEDY))
    return engine.stats().totals.cached_tokens - before


@pytest.mark.parametrize("length", [1, 16, 17, 33, 200, BOUNDARY - 4, BOUNDARY, BOUNDARY + 200])
def test_a_prompt_seen_before_is_computed_from_its_last_block(
    make_engine: MakeEngine, length: int
) -> None:
    """With the same answer, whichever regime it starts or ends in; or not at all when switched off."""
    engine, plain = make_engine(), make_engine(prefix_caching=False)
    prompt = text_prompt(length)
    first = run(engine, (prompt, GREEDY))
    assert cached_tokens(engine, prompt) == (length - 1) // 16 * 16
    assert run(engine, (prompt, GREEDY)) == first == run(plain, (prompt, GREEDY))
    assert cached_tokens(plain, prompt) == 0


def test_a_second_turn_finds_the_first_and_its_answer(make_engine: MakeEngine) -> None:
    engine = make_engine()
    turn = text_prompt(100)
    (answer,) = run(engine, (turn, GREEDY)).values()
    second = PromptInputs([*turn.token_ids, *answer, *text_prompt(30, 1).token_ids])
    assert cached_tokens(engine, second) == (100 + len(answer) - 1) // 16 * 16
    assert cached_tokens(make_engine(), second) == 0


def test_keys_of_one_regime_are_not_those_of_the_other(make_engine: MakeEngine) -> None:
    engine = make_engine()
    long = text_prompt(BOUNDARY + 50)
    start = PromptInputs(long.token_ids[: BOUNDARY - 100])
    run(engine, (start, GREEDY))
    alone = run(make_engine(), (long, GREEDY))
    before = engine.stats().totals.cached_tokens
    assert run(engine, (long, GREEDY)) == alone
    assert engine.stats().totals.cached_tokens == before


def test_the_same_tokens_with_another_image_are_another_prompt(make_engine: MakeEngine) -> None:
    engine = make_engine()
    red, blue = (image_prompt(engine, colour) for colour in ("red", "blue"))
    assert red.token_ids == blue.token_ids
    alone = {colour: run(make_engine(), (p, GREEDY)) for colour, p in (("r", red), ("b", blue))}
    assert alone["r"] != alone["b"]
    assert run(engine, (red, GREEDY)) == alone["r"]
    before = engine.stats().totals.cached_tokens
    assert run(engine, (blue, GREEDY)) == alone["b"]
    assert engine.stats().totals.cached_tokens == before
    both = run(engine, (red, GREEDY), (blue, GREEDY), (red, GREEDY))
    assert [both[i, 0] for i in range(3)] == [alone[c][0, 0] for c in "rbr"]


def test_a_second_question_about_an_image_runs_neither_tower_nor_prefill(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    prompt = image_prompt(engine, "red", "what is this")
    run(engine, (prompt, GREEDY))
    second = image_prompt(engine, "red", "what is this, and why")
    start, image = second.token_ids.index(-1), second.image
    assert image is not None
    assert cached_tokens(engine, second) >= start + image.num_tokens - 15
    stats = engine.stats()
    assert (stats.images_computed, stats.embedding_hits) == (1, 0)  # not even looked for
    assert run(engine, (second, GREEDY)) == run(make_engine(), (second, GREEDY))


def test_an_embedding_outlives_its_prompt(make_engine: MakeEngine) -> None:
    engine = make_engine(prefix_caching=False)
    prompt = image_prompt(engine, "red")
    first = run(engine, (prompt, GREEDY))
    assert (
        run(engine, (prompt, GREEDY), (image_prompt(engine, "red", "why"), GREEDY))[0, 0]
        == (first[0, 0])
    )
    stats = engine.stats()
    assert stats.images_computed == 1
    assert stats.embedding_hits >= 1
    assert stats.embedding_bytes > 0


def test_without_the_embedding_cache_the_tower_runs_again(make_engine: MakeEngine) -> None:
    engine = make_engine(embedding_cache_memory=0, prefix_caching=False)
    prompt = image_prompt(engine, "red")
    first = run(engine, (prompt, GREEDY))
    assert run(engine, (prompt, GREEDY)) == first
    assert engine.stats().images_computed == 2
    assert first == run(make_engine(), (prompt, GREEDY))


def test_the_embedding_cache_is_bounded() -> None:
    cache = EmbeddingCache(100)
    for name in (b"a", b"b"):
        cache.put(name, torch.zeros(10))
    assert cache.get(b"a") is not None
    cache.put(b"c", torch.zeros(10))  # the longest unused goes
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    cache.put(b"d", torch.zeros(26))
    assert cache.get(b"d") is None
    assert cache.num_bytes == 80


def test_answers_to_one_prompt_share_it(make_engine: MakeEngine) -> None:
    """Its blocks, but not the last one, in which each goes on; its image runs through the tower once."""
    engine = make_engine(prefix_caching=False)
    prompt = image_prompt(engine, "red")
    params = replace(GREEDY, temperature=1.0, seed=7, n=3)
    engine.add(0, prompt, params)
    answers: Answers = {}
    used = 0
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output.result, TextDelta)
            answers.setdefault(output.key, []).extend(output.result.token_ids)
        used = max(used, engine.stats().blocks_used)
    alone = engine.blocks.blocks_for(len(prompt.token_ids) + 8)
    assert alone < used <= alone + 2 * 2
    assert engine.stats().images_computed == 1
    for index in range(3):
        single = replace(params, seed=7 + index, n=1)
        assert answers[0, index] == run(make_engine(), (prompt, single))[0, 0]


def test_followers_outlive_a_leader_that_fails(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.add(0, text_prompt(20), replace(GREEDY, n=2))
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "run", lambda chunks: 1 / 0)
        (failed,) = engine.step()
    assert failed.key == (0, 0)
    assert isinstance(failed.result, StepFailedError)
    outputs: list[Output] = []
    while engine.has_work:
        outputs += engine.step()
    assert {output.key for output in outputs} == {(0, 1)}
    assert len(outputs) == 8
    assert engine.stats().totals.failed_steps == 1


def test_an_image_that_fails_in_company_fails_alone(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images share a pass of the tower; the others' are computed again without the bad one."""
    monkeypatch.setattr(type(make_engine().network.vision), "crops_per_pass", 100)
    engine = make_engine(prefill_chunk=2048)
    in_parts = engine.network.vision.in_parts
    prompts = [image_prompt(engine, colour) for colour in ("red", "green", "blue")]
    bad = prompts[1].image
    assert bad is not None

    def sometimes(pixels: list[torch.Tensor], grids: list[tuple[int, int]]) -> object:
        if any(p is bad.pixels for p in pixels):
            raise RuntimeError("bad pixels")
        return (yield from in_parts(pixels, grids))

    monkeypatch.setattr(engine.vision._tower, "in_parts", sometimes)
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
    monkeypatch.setattr(engine._pacing, "spare_seconds", lambda *_: 0.0)  # one part a step
    engine.add(1, image_prompt(engine, "red"), GREEDY)
    texts = 0
    while not engine.stats().images_computed:
        outputs = engine.step()
        texts += [output.key[0] for output in outputs] == [0]
    assert texts >= 3
    assert isinstance(engine.vision, vision_runner.VisionRunner)


@settings(
    max_examples=5,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32), caching=st.booleans(), blocks=st.sampled_from([129, 160, 2048]))
def test_random_traffic(make_engine: MakeEngine, seed: int, caching: bool, blocks: int) -> None:
    """Arrivals, aborts and preemptions at random: no block is lost, no answer is another."""
    rng = random.Random(seed)
    engine = make_engine(num_blocks=blocks, prefix_caching=caching, prefill_chunk=256)
    kinds: dict[str, tuple[PromptInputs, SamplingParams]] = {
        "short": (text_prompt(rng.randrange(1, 60), 1), GREEDY),
        "long": (text_prompt(rng.randrange(1025, 1300), 2), GREEDY),
        "near": (text_prompt(BOUNDARY - rng.randrange(8), 3), GREEDY),
        "image": (image_prompt(engine, "red"), GREEDY),
        "pair": (text_prompt(40, 4), replace(GREEDY, temperature=1.0, seed=5, n=2)),
        "same": (text_prompt(50, 1), replace(GREEDY, temperature=0.7, seed=9)),
    }
    names = [rng.choice(list(kinds)) for _ in range(8)]
    arrivals = sorted(rng.randrange(20) for _ in names)
    aborts = {rng.randrange(40): rng.randrange(len(names)) for _ in range(2)}
    answers: Answers = {}
    aborted: set[int] = set()
    step = 0
    while engine.has_work or step <= max(arrivals):
        for i, at in enumerate(arrivals):
            if at == step:
                engine.add(i, *kinds[names[i]])
        if step in aborts and arrivals[aborts[step]] <= step:
            engine.abort(aborts[step])
            aborted.add(aborts[step])
        for output in engine.step():
            assert isinstance(output.result, TextDelta), output.result
            answers.setdefault(output.key, []).extend(output.result.token_ids)
        holders = [b for s in engine._sequences.values() for b in s.block_table]
        assert len(set(holders)) == engine.stats().blocks_used
        assert engine.stats().blocks_used + engine.stats().blocks_free == blocks
        step += 1
    assert engine.blocks.num_free == blocks
    for i, name in enumerate(names):
        if i not in aborted:
            alone = run(make_engine(prefix_caching=False), kinds[name])
            for (_, index), tokens in alone.items():
                assert answers[i, index] == tokens, (i, name)


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
def test_what_is_computed_together_does_not_depend_on_company(tiny: Path, what: str) -> None:
    """Of each answer the same chunks, whatever else there is to do."""
    engine = load_engine(
        tiny, LoadOptions("", dtype="float32", max_model_len=2048, deterministic=True)
    )
    if what == "preemption":
        config = replace(engine.config, num_blocks=2048 // engine.config.block_size)
        engine = Engine(engine.network, engine.processor, engine._stop_ids, config)
    prompts = {
        "prompts at once": [text_prompt(length, length) for length in (600, 324, 30, 513)],
        "preemption": [text_prompt(length, length) for length in (990, 980, 20)],
        "pictures": [
            image_prompt(engine, colour, "look " * 600) for colour in ("red", "blue", "red")
        ],
    }[what]
    chunks, compute = [], engine._compute

    def record(given: list[Chunk]) -> object:
        chunks.extend((c.sequence.key[0], c.start, c.end) for c in given)
        return compute(given)

    engine._compute = record  # type: ignore[assignment]
    answers = run(engine, *((prompt, replace(GREEDY, max_tokens=40)) for prompt in prompts))
    assert (engine.stats().preemptions > 0) == (what == "preemption")
    together = set(chunks)
    for i, prompt in enumerate(prompts):
        chunks.clear()
        assert run(engine, (prompt, replace(GREEDY, max_tokens=40)))[0, 0] == answers[i, 0]
        assert {(i, start, end) for _, start, end in chunks} == {c for c in together if c[0] == i}


def test_stats(make_engine: MakeEngine) -> None:
    engine = make_engine(num_blocks=128)
    run(engine, (text_prompt(40), GREEDY), (text_prompt(1020, 1), GREEDY))
    engine.add(5, text_prompt(30), GREEDY)
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (1, 0)
    assert stats.blocks_used == 2
    engine.abort(5)
    totals = engine.stats().totals
    assert totals.finished == {"length": 2, "abort": 1}
    assert totals.generated_tokens == 17
    assert totals.prompt_tokens == 40 + 1020 + 30
    assert sum(totals.ttft.counts) == 3
    assert sum(totals.itl.counts) == 14
    assert engine.stats().regime_recomputes == 1
