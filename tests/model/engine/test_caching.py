"""What is computed once is not computed again, and never taken for something else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.engine.engine import Engine
from model.engine.execution.runner import Runner
from model.engine.request import Output, TextDelta
from model.errors import StepFailedError
from model.phi3v.inputs.processing import PromptInputs
from tests.support.engines.engine_runs import (
    BOUNDARY,
    GREEDY,
    Answers,
    MakeEngine,
    image_prompt,
    run,
    text_prompt,
)


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
    start, (image,) = second.token_ids.index(-1), second.images
    assert cached_tokens(engine, second) >= start + image.num_tokens - 15
    stats = engine.stats()
    assert (stats.images_computed, stats.embedding_hits) == (1, 0)  # not even looked for
    assert run(engine, (second, GREEDY)) == run(make_engine(), (second, GREEDY))


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
        patch.setattr(Runner, "run", lambda self, chunks: 1 / 0)
        (failed,) = engine.step()
    assert failed.key == (0, 0)
    assert isinstance(failed.result, StepFailedError)
    outputs: list[Output] = []
    while engine.has_work:
        outputs += engine.step()
    assert {output.key for output in outputs} == {(0, 1)}
    assert len(outputs) == 8
    assert engine.stats().totals.failed_steps == 1
