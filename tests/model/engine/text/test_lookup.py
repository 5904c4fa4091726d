"""Prompt lookup: the same answers in fewer steps, whatever the parameters, or no guess at all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.demo.random_checkpoint import PRESETS, write_checkpoint
from model.demo.repeating import make_repeating
from model.engine.config import LoadOptions
from model.engine.engine import Engine
from model.engine.loading.load import load_engine
from model.engine.request import SamplingParams
from model.engine.text.lookup import LONGEST_GUESS, Lookup
from model.phi3v.inputs.chat import Message
from tests.support.engines.engine_runs import resized


@pytest.fixture(
    scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def make_repeater(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Engine]:
    """Engines whose greedy answers go round in a circle of 40 tokens; the regime changes at 1024."""
    directory = tmp_path_factory.mktemp("checkpoints") / "repeating"
    write_checkpoint(directory, PRESETS["tiny"], seed=2)
    make_repeating(directory, period=40)
    loaded = load_engine(directory, LoadOptions("", dtype=request.param, max_model_len=2048))

    return partial(resized, loaded)


def run(
    engine: Engine, requests: list[SamplingParams], prompt: str = "Say it."
) -> tuple[list[Any], int]:
    """What each answer yields, all in one batch, and the steps it takes."""
    for number, params in enumerate(requests):
        inputs, _ = engine.prepare([Message("user", f"{prompt} {number}")], params)
        engine.add(number, inputs, params)
    answers: dict[Any, list[Any]] = {}
    steps = 0
    while engine.has_work:
        steps += 1
        for output in engine.step():
            result = output.result
            assert not isinstance(result, Exception), result
            text, token_ids, logprobs, _ = answers.setdefault(output.key, ["", [], [], None])
            token_ids.extend(result.token_ids)
            logprobs.extend(result.logprobs)
            answers[output.key] = [text + result.text, token_ids, logprobs, result.finish_reason]
    assert engine.blocks.num_free == engine.blocks.num_blocks
    return [answers[key] for key in sorted(answers)], steps


def params(**more: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 300, "ignore_eos": True, **more})


@pytest.mark.parametrize(
    ("more", "saves"),
    [
        ({}, True),
        ({"temperature": 0.05, "seed": 3}, True),
        ({"temperature": 2.0, "seed": 3}, False),
        ({"temperature": 0.05, "top_p": 0.9, "top_k": 50, "seed": 9}, True),
        ({"logprobs": 2}, True),
        ({"logit_bias": {1003: -100.0}}, False),
        ({"max_tokens": 77}, False),
        ({"frequency_penalty": 0.5}, False),
        ({"repetition_penalty": 1.2}, False),
        ({"min_tokens": 250}, False),
        ({"n": 3, "temperature": 0.05, "seed": 1}, True),
    ],
)
def test_answers_are_the_same(
    make_repeater: Callable[..., Engine], more: dict[str, Any], saves: bool
) -> None:
    requests = [params(**more)] * 3
    guessed, steps = run(make_repeater(), requests)
    plain, plain_steps = run(make_repeater(prompt_lookup=False), requests)
    assert guessed == plain
    assert steps <= plain_steps
    if saves:
        assert steps * 1.5 < plain_steps


def test_across_the_rope_boundary(make_repeater: Callable[..., Engine]) -> None:
    """A guess never crosses it; the whole is computed again beyond, as without guesses."""
    prompt = "many words " * 120
    requests = [params(max_tokens=600, logprobs=1)]
    engine = make_repeater(prefill_chunk=256)
    guessed, steps = run(engine, requests, prompt)
    plain, plain_steps = run(
        make_repeater(prefill_chunk=256, prompt_lookup=False), requests, prompt
    )
    assert [answer[:2] for answer in guessed] == [answer[:2] for answer in plain]
    assert engine.stats().regime_recomputes == 1
    assert steps < plain_steps / 1.5
    for one, other in zip(guessed[0][2], plain[0][2], strict=True):
        assert one.chosen.logprob == pytest.approx(other.chosen.logprob, abs=1e-3)


def test_stop_strings_cut_where_they_did(make_repeater: Callable[..., Engine]) -> None:
    (whole, *_), _ = run(make_repeater(), [params()])
    text = whole[0]
    for at in range(100, 112):
        asked = [params(stop=(text[at : at + 4],))]
        assert run(make_repeater(), asked)[0] == run(make_repeater(prompt_lookup=False), asked)[0]


def test_with_preemptions_and_the_prefix_cache(make_repeater: Callable[..., Engine]) -> None:
    """Blocks for guesses are taken only where there are some; what is kept in them is right."""
    requests = [params(max_tokens=400)] * 6
    plain, _ = run(make_repeater(prompt_lookup=False), requests)
    tight = make_repeater(max_model_len=512, num_blocks=80)
    for _ in range(2):
        guessed, _ = run(tight, requests)
        assert guessed == plain
    assert tight.stats().preemptions > 0
    assert tight.stats().totals.guessed_right > 1000


def test_a_model_of_noise_is_hardly_guessed(make_engine: Callable[..., Engine]) -> None:
    engine, plain = make_engine(), make_engine(prompt_lookup=False)
    requests = [params(temperature=1.0, seed=seed) for seed in range(4)]
    assert run(engine, requests)[0] == run(plain, requests)[0]
    assert engine.stats().totals.guessed_tokens < 60


def test_deterministic_engines_do_not_guess(make_repeater: Callable[..., Engine]) -> None:
    engine = make_repeater(deterministic=True)
    run(engine, [params(max_tokens=100)])
    assert engine.stats().totals.guessed_tokens == 0


@settings(max_examples=300)
@given(st.lists(st.integers(-1, 4), min_size=3, max_size=200), st.integers(0, 40))
def test_guesses_are_what_followed(tokens: list[int], most: int) -> None:
    guess = Lookup(0).guess(tokens, most)
    assert len(guess) <= min(most, LONGEST_GUESS)
    assert all(token >= 0 for token in guess)
    if guess:
        last = tokens[-3:]
        found = [at for at in range(len(tokens) - 3) if tokens[at : at + 3] == last]
        circle = tokens[found[-1] + 3 :]
        assert guess == (circle * 50)[: len(guess)]


def test_guesses_grow_when_right_and_pause_when_wrong() -> None:
    lookup, tokens = Lookup(0), list(range(50)) * 2
    sizes = []
    for _ in range(5):
        sizes.append(len(lookup.guess(tokens, 99)))
        lookup.learn(sizes[-1], sizes[-1])
    assert sizes == [4, 8, 16, 31, 31]
    lookup.learn(31, 5)
    assert len(lookup.guess(tokens, 99)) == 6
    for pause in (2, 4, 8):
        lookup.learn(4, 0)
        assert [len(lookup.guess(tokens, 99)) for _ in range(pause + 1)] == [0] * pause + [4]


def test_a_long_prompt_is_indexed_a_part_at_a_time() -> None:
    tokens = [*range(10_000), 5000, 5001, 5002]
    lookup = Lookup(len(tokens))
    guesses = [lookup.guess(tokens, 2) for _ in range(6)]
    assert guesses[0] == []
    assert guesses[-1] == [5003, 5004]
