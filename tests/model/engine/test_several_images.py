"""Prompts with several images: the engine's greedy answers are those of ``generate``, however computed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.engine.engine import Engine
from model.engine.in_flight import Footprint
from model.engine.request import SequenceKey, TextDelta
from model.engine.scheduling.pacing import Pacing
from model.errors import StepFailedError
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.processing import Processor, PromptInputs
from model.phi3v.modeling import Phi3VForCausalLM
from tests.support.engines.engine_runs import (
    BOUNDARY,
    GREEDY,
    Answers,
    MakeEngine,
    run,
    text_prompt,
)
from tests.support.engines.oracle import greedy, tower_inputs

# Colours of each prompt's images; 313 tokens an image.
PROMPTS = [("red", "blue"), ("green", "red", "green"), ()]


@pytest.fixture(scope="module")
def network(tiny: Path) -> Phi3VForCausalLM:
    return Phi3VForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(tiny: Path) -> Processor:
    return Processor.from_checkpoint(tiny, images_per_prompt=3)


@pytest.fixture(scope="module")
def prompt(processor: Processor) -> Callable[..., PromptInputs]:
    """Prompts of a text before each image, and a last one."""

    @cache
    def make(*colours: str, last: str = "compare") -> PromptInputs:
        text, images = "", []
        for number, colour in enumerate(colours):
            text += f"picture {number}\n"
            paint = partial(Image.new, "RGB", (300, 300), colour)
            images.append(MessageImage(paint, num_crops=1, offset=len(text)))
        return processor([Message("user", text + last, tuple(images))], 2000)

    return make


@pytest.fixture(scope="module")
def expected(network: Phi3VForCausalLM) -> Callable[[PromptInputs], list[int]]:
    """Greedy answers by ``generate``, each computed once."""

    @cache
    def answer(inputs: PromptInputs) -> list[int]:
        ids = torch.tensor([inputs.token_ids])
        return greedy(network, ids, GREEDY.max_tokens or 0, **tower_inputs(inputs))

    return answer


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"prefill_chunk": 33},
        {"prefill_chunk": 100, "prefix_caching": False, "embedding_cache_memory": 0},
        {"deterministic": True, "prefill_chunk": 200},
    ],
    ids=["default", "chunked", "uncached", "deterministic"],
)
def test_answers_are_those_of_generate(
    make_engine: MakeEngine,
    prompt: Callable[..., PromptInputs],
    expected: Callable[[PromptInputs], list[int]],
    sizes: dict[str, int | bool],
) -> None:
    engine = make_engine(**sizes)
    prompts = [prompt(*colours) for colours in PROMPTS]
    # One that begins in the short regime and is recomputed, images included, in the long one.
    prompts.append(lengthened(prompt("blue", "red"), BOUNDARY - 4))
    answers = run(engine, *((inputs, GREEDY) for inputs in prompts))
    assert [answers[i, 0] for i in range(len(prompts))] == [expected(each) for each in prompts]
    assert engine.scheduler.num_crossings == 1


def lengthened(inputs: PromptInputs, length: int) -> PromptInputs:
    filler = text_prompt(length - len(inputs.token_ids)).token_ids
    return PromptInputs(inputs.token_ids + filler, inputs.images)


def test_preempted(
    make_engine: MakeEngine,
    prompt: Callable[..., PromptInputs],
    expected: Callable[[PromptInputs], list[int]],
) -> None:
    """The youngest gives up its blocks, and keeps its images' embeddings for later."""
    engine = make_engine(num_blocks=128, prefix_caching=False)
    pairs = [("red", "blue"), ("blue", "red")]  # 64 blocks each; both grow past what is there
    prompts = [lengthened(prompt(*pair), 1018 + i) for i, pair in enumerate(pairs)]
    answers = run(engine, *((inputs, GREEDY) for inputs in prompts))
    assert [answers[i, 0] for i in range(2)] == [expected(each) for each in prompts]
    assert engine.scheduler.num_preemptions >= 1
    assert engine.stats().images_computed == 2


def test_the_same_image_goes_through_the_tower_once(
    make_engine: MakeEngine, prompt: Callable[..., PromptInputs]
) -> None:
    engine = make_engine()
    run(engine, (prompt("green", "red", "green"), GREEDY))
    assert engine.stats().images_computed == 2
    run(engine, (prompt("red", "blue"), GREEDY))
    assert (engine.stats().images_computed, engine.stats().embedding_hits) == (3, 1)


def test_what_is_cached_ends_at_the_first_other_image(
    make_engine: MakeEngine,
    prompt: Callable[..., PromptInputs],
    expected: Callable[[PromptInputs], list[int]],
) -> None:
    engine = make_engine()

    def ask(inputs: PromptInputs) -> int:
        before = engine.stats().totals.cached_tokens
        assert run(engine, (inputs, GREEDY))[0, 0] == expected(inputs)
        return engine.stats().totals.cached_tokens - before

    first, other = prompt("red", "blue"), prompt("red", "green")
    assert first.token_ids == other.token_ids
    second = first.token_ids.index(-2)
    assert ask(first) == 0
    assert ask(other) == second // 16 * 16
    again = prompt("red", "blue", last="what is different")
    assert ask(again) >= again.token_ids.index(-2) + 313 - 15
    assert engine.stats().images_computed == 3


def test_answers_to_one_prompt_share_its_images(
    make_engine: MakeEngine, prompt: Callable[..., PromptInputs]
) -> None:
    engine = make_engine(prefix_caching=False, embedding_cache_memory=0)
    inputs = prompt("red", "blue")
    params = replace(GREEDY, temperature=1.0, seed=7, n=3)
    answers = run(engine, (inputs, params))
    assert engine.stats().images_computed == 2
    for index in range(3):
        single = replace(params, seed=7 + index, n=1)
        assert answers[0, index] == run(make_engine(), (inputs, single))[0, 0]


def test_text_before_an_image_does_not_wait_for_it(
    make_engine: MakeEngine,
    prompt: Callable[..., PromptInputs],
    expected: Callable[[PromptInputs], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sequence is computed up to the first image that the tower has not finished."""
    engine = make_engine(embedding_cache_memory=0)
    inputs = prompt("red", "blue")
    engine.add(0, text_prompt(10), replace(GREEDY, max_tokens=200))
    for _ in range(3):
        engine.step()
    monkeypatch.setattr(Pacing, "spare_seconds", lambda *_: 0.0)  # one part of the tower a step
    monkeypatch.setattr(Pacing, "prefill_budget", lambda *_: 2000)
    engine.add(1, inputs, GREEDY)
    answers: Answers = {}
    reached = set()
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output.result, TextDelta)
            answers.setdefault(output.key, []).extend(output.result.token_ids)
        reached |= {each.num_computed for each in engine.scheduler.running if each.key == (1, 0)}
    assert {inputs.token_ids.index(-1), inputs.token_ids.index(-2)} <= reached
    assert answers[1, 0] == expected(inputs)


def test_sequences_take_turns_in_the_tower(
    make_engine: MakeEngine,
    prompt: Callable[..., PromptInputs],
    expected: Callable[[PromptInputs], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that has many images does not keep others waiting for all of them."""
    engine = make_engine()
    many, one = prompt("red", "blue", "black"), prompt("white")
    in_parts, seen = engine.network.vision.in_parts, []

    def recorded(
        pixels: list[torch.Tensor], grids: list[tuple[int, int]]
    ) -> Generator[None, None, list[torch.Tensor]]:
        seen.extend(pixels)
        return in_parts(pixels, grids)

    monkeypatch.setattr(engine.network.vision, "in_parts", recorded)
    answers = run(engine, (many, GREEDY), (one, GREEDY))
    assert answers[1, 0] == expected(one)
    order = [many.decoded[0], one.decoded[0], *many.decoded[1:]]
    assert all(torch.equal(p, image.crops()) for p, image in zip(seen, order, strict=True))


def test_an_image_that_fails_ends_its_requests_once(
    make_engine: MakeEngine,
    prompt: Callable[..., PromptInputs],
    expected: Callable[[PromptInputs], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine()
    bad, good = prompt("red", "blue"), prompt("green", "white")
    in_parts = engine.network.vision.in_parts

    def sometimes(
        pixels: list[torch.Tensor], grids: list[tuple[int, int]]
    ) -> Generator[None, None, list[torch.Tensor]]:
        if any(torch.equal(p, image.crops()) for p in pixels for image in bad.decoded):
            raise RuntimeError("bad pixels")
        return (yield from in_parts(pixels, grids))

    monkeypatch.setattr(engine.network.vision, "in_parts", sometimes)
    engine.add(0, bad, GREEDY)
    engine.add(1, good, GREEDY)
    failed: list[SequenceKey] = []
    answer: list[int] = []
    while engine.has_work:
        for output in engine.step():
            if isinstance(output.result, StepFailedError):
                failed.append(output.key)
            elif isinstance(output.result, TextDelta):
                answer += output.result.token_ids
    assert failed == [(0, 0)]
    assert answer == expected(good)


def test_all_images_count_as_memory_in_flight(prompt: Callable[..., PromptInputs]) -> None:
    one, three = prompt("red"), prompt("green", "red", "green")
    (image,) = one.decoded
    assert Footprint.of(one, GREEDY, 8).image_bytes == image.pixels.nbytes > 0
    assert Footprint.of(three, GREEDY, 8).image_bytes == 3 * image.pixels.nbytes


def test_an_engine_of_several_is_loaded(tiny: Path) -> None:
    from model.engine.config import LoadOptions
    from model.engine.loading.load import load_engine

    def loaded(count: int) -> Engine:
        options = LoadOptions(model="", dtype="float32", images_per_prompt=count)
        return load_engine(tiny, options)

    assert [loaded(count).processor.images_per_prompt for count in (1, 3)] == [1, 3]
