"""The engine's promise: an answer is the same alone, in any batch, chunked or preempted.

The oracle is ``generate`` of the transformers class, one prompt at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.engine.engine import Engine
from model.engine.execution.runner import Runner
from model.engine.request import SamplingParams, TextDelta
from model.errors import RequestError, StepFailedError
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.processing import PromptInputs
from model.phi3v.modeling import Phi3VForCausalLM
from tests.support.engines.oracle import greedy, tower_inputs

COUNT = 12  # tokens of an answer
GREEDY = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
BOUNDARY = 1024
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def network(tiny: Path) -> Phi3VForCausalLM:
    return Phi3VForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


def text_prompt(length: int, seed: int = 0) -> PromptInputs:
    generator = torch.Generator().manual_seed(seed * 100_000 + length)
    return PromptInputs(
        [1, *torch.randint(300, 32000, (length - 1,), generator=generator).tolist()]
    )


def image_prompt(engine: Engine, size: tuple[int, int], colour: str) -> PromptInputs:
    picture = MessageImage(lambda: Image.new("RGB", size, colour))
    return engine.processor([Message("user", "look", (picture,))], 2000)


def run(
    engine: Engine,
    prompts: list[PromptInputs],
    params: SamplingParams | list[SamplingParams] = GREEDY,
    arrivals: list[int] | None = None,
) -> list[list[int]]:
    """Token ids of each answer; prompt i is added before step ``arrivals[i]``."""
    arrivals = arrivals or [0] * len(prompts)
    each = params if isinstance(params, list) else [params] * len(prompts)
    answers: list[list[int]] = [[] for _ in prompts]
    added = step = 0
    while added < len(prompts) or engine.has_work:
        for i, at in enumerate(arrivals):
            if at == step:
                engine.add(i, prompts[i], each[i])
                added += 1
        for output in engine.step():
            assert isinstance(output.result, TextDelta), output.result
            answers[output.key[0]] += output.result.token_ids
        step += 1
    assert engine.blocks.num_free == engine.blocks.num_blocks
    return answers


def oracle(network: Phi3VForCausalLM, prompt: PromptInputs, count: int) -> list[int]:
    return greedy(network, torch.tensor([prompt.token_ids]), count, **tower_inputs(prompt))


@pytest.fixture(scope="module")
def expected(network: Phi3VForCausalLM) -> Callable[[int, int], list[int]]:
    """Greedy answers to text prompts by length and seed, each computed once."""
    return cache(lambda length, seed: oracle(network, text_prompt(length, seed), COUNT))


LENGTHS = st.sampled_from([1, 2, 15, 16, 17, 100, 1015, 1020, 1023, 1024, 1025, 1300])


@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    lengths=st.lists(LENGTHS, min_size=1, max_size=6),
    chunk=st.sampled_from([1000000, 512, 100, 33]),
    arrivals=st.lists(st.integers(0, 20), min_size=6, max_size=6),
    blocks=st.sampled_from([128, 130, 200, 4096]),
)
def test_alone_equals_any_batch(
    make_engine: MakeEngine,
    expected: Callable[[int, int], list[int]],
    lengths: list[int],
    chunk: int,
    arrivals: list[int],
    blocks: int,
) -> None:
    """Whatever the company, arrival, chunk size, and memory: preempted or not, crossing or not."""
    engine = make_engine(prefill_chunk=chunk, num_blocks=blocks)
    prompts = [text_prompt(length, i) for i, length in enumerate(lengths)]
    answers = run(engine, prompts, arrivals=arrivals[: len(prompts)])
    assert answers == [expected(length, i) for i, length in enumerate(lengths)]


def test_crossing_is_recomputed_once(
    make_engine: MakeEngine, expected: Callable[[int, int], list[int]]
) -> None:
    engine = make_engine()
    assert run(engine, [text_prompt(BOUNDARY - 5)]) == [expected(BOUNDARY - 5, 0)]
    assert engine.scheduler.num_crossings == 1
    run(engine, [text_prompt(BOUNDARY), text_prompt(BOUNDARY + 1)])
    assert engine.scheduler.num_crossings == 2  # only the one that starts in the short regime


def test_images_in_a_batch_and_over_the_boundary(
    make_engine: MakeEngine, network: Phi3VForCausalLM
) -> None:
    engine = make_engine(prefill_chunk=200)
    sizes = [((300, 300), "red"), ((900, 200), "blue"), ((200, 900), "green")]
    prompts = [image_prompt(engine, size, colour) for size, colour in sizes]
    prompts.append(text_prompt(50))
    # Pushed to just below the boundary by text after the image, so that decoding crosses.
    long = image_prompt(engine, (640, 480), "yellow")
    filler = text_prompt(BOUNDARY - 4 - len(long.token_ids)).token_ids
    prompts.append(PromptInputs(long.token_ids + filler, long.images))
    answers = run(engine, prompts)
    assert answers == [oracle(network, prompt, COUNT) for prompt in prompts]
    assert engine.scheduler.num_crossings == 1


def test_preemption_recomputes_the_youngest(
    make_engine: MakeEngine, expected: Callable[[int, int], list[int]]
) -> None:
    engine = make_engine(num_blocks=128)
    lengths = [1020, 1015]  # 64 blocks each; both grow past what is there
    answers = run(engine, [text_prompt(length, i) for i, length in enumerate(lengths)])
    assert answers == [expected(length, i) for i, length in enumerate(lengths)]
    assert engine.scheduler.num_preemptions >= 1


def test_running_answers_go_on_while_a_long_prompt_is_prefilled(make_engine: MakeEngine) -> None:
    engine = make_engine(prefill_chunk=64)
    engine.add(0, text_prompt(10), replace(GREEDY, max_tokens=100))
    engine.step()
    engine.add(1, text_prompt(1500), GREEDY)
    for _ in range(20):
        outputs = engine.step()
        assert [output.key[0] for output in outputs] == [0]


def test_first_come_first_served(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=1)
    finished = []
    for i in range(3):
        engine.add(i, text_prompt(10, i), GREEDY)
    while engine.has_work:
        finished += [
            output.key[0]
            for output in engine.step()
            if isinstance(output.result, TextDelta) and output.result.finish_reason
        ]
    assert finished == [0, 1, 2]


def test_sampled_rows_among_greedy_ones(make_engine: MakeEngine) -> None:
    sampled = [replace(GREEDY, temperature=1.0, top_p=0.9, seed=seed) for seed in (1, 2, 3)]
    prompts = [text_prompt(20, i) for i in range(3)]
    alone = [run(make_engine(), [p], s)[0] for p, s in zip(prompts, sampled, strict=True)]
    mixed = run(make_engine(), [*prompts, text_prompt(30)], [*sampled, GREEDY])
    assert mixed[:3] == alone
    assert len({tuple(answer) for answer in alone}) == 3


def test_n_answers_are_those_of_their_seeds(make_engine: MakeEngine) -> None:
    engine = make_engine()
    params = replace(GREEDY, temperature=1.0, seed=10, n=3)
    engine.add(0, text_prompt(20), params)
    answers: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output.result, TextDelta)
            assert output.result.index == output.key[1]
            answers[output.key[1]] += output.result.token_ids
    for index, answer in answers.items():
        single = replace(params, seed=10 + index, n=1)
        assert run(make_engine(), [text_prompt(20)], single)[0] == answer


def finish(engine: Engine, prompt: PromptInputs, params: SamplingParams) -> tuple[str, str, int]:
    """Text, finish reason and number of tokens of one answer."""
    engine.add(0, prompt, params)
    text, reason, tokens = "", "", 0
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output.result, TextDelta)
            text += output.result.text
            tokens += len(output.result.token_ids)
            reason = output.result.finish_reason or reason
    return text, reason, tokens


def test_how_answers_end(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = text_prompt(40)
    (tokens,) = run(make_engine(), [prompt])
    whole, reason, count = finish(engine, prompt, GREEDY)
    assert (reason, count) == ("length", 12)
    stop = whole[4:7]
    text, reason, count = finish(engine, prompt, replace(GREEDY, stop=(stop,)))
    assert (text, reason) == (whole[: whole.index(stop)], "stop")
    assert count < 12
    text, reason, count = finish(engine, prompt, replace(GREEDY, stop_token_ids=(tokens[3],)))
    assert (reason, count) == ("stop", tokens.index(tokens[3]) + 1)
    assert whole.startswith(text)


def test_the_checkpoints_stop_tokens_end_an_answer(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for token_id in sorted(engine.stop_ids):
        params = SamplingParams(temperature=0, max_tokens=5, logit_bias={token_id: 100.0})
        assert finish(engine, text_prompt(9), params) == ("", "stop", 1)
        endless = replace(params, ignore_eos=True)
        assert finish(engine, text_prompt(9), endless)[1:] == ("length", 5)
        waiting = replace(params, min_tokens=3)
        assert finish(engine, text_prompt(9), waiting)[1:] == ("stop", 4)
    assert {2, 32000, 32001, 32007} == engine.stop_ids
    named = SamplingParams(temperature=0, max_tokens=5, stop=("<|user|>",), logit_bias={32010: 100})
    assert finish(engine, text_prompt(9), named) == ("", "stop", 1)


def test_the_window_bounds_the_answer(make_engine: MakeEngine) -> None:
    engine = make_engine(max_model_len=100)
    _, reason, count = finish(engine, text_prompt(95), replace(GREEDY, max_tokens=1000))
    assert (reason, count) == ("length", 5)


def test_abort_at_every_stage(make_engine: MakeEngine) -> None:
    engine = make_engine(prefill_chunk=64, max_num_seqs=2)
    for steps in (0, 1, 5):  # queued, in prefill, in decode
        engine.add(0, text_prompt(200), GREEDY)
        engine.add(1, text_prompt(30), GREEDY)
        engine.add(2, text_prompt(30, 1), GREEDY)  # waits for a place
        for _ in range(steps):
            engine.step()
        for i in range(3):
            engine.abort(i)
        assert not engine.has_work
        assert engine.blocks.num_free == engine.blocks.num_blocks
    engine.abort(7)  # unknown: nothing happens


def test_a_failing_step_ends_its_own_sequences(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.add(0, text_prompt(20), GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", lambda self, chunks: 1 / 0)
        (output,) = engine.step()
    assert isinstance(output.result, StepFailedError)
    assert not engine.has_work
    assert len(run(engine, [text_prompt(20)])[0]) == 12


def test_a_failing_image_spares_its_neighbours(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(prefill_chunk=2048)
    engine.add(0, image_prompt(engine, (300, 300), "red"), GREEDY)
    engine.add(1, text_prompt(20), GREEDY)
    monkeypatch.setattr(engine.network.vision, "in_parts", lambda *_: (1 / 0 for _ in (0,)))
    good, *_ = engine.step()
    failed, _ = engine.step()
    assert (failed.key[0], good.key[0]) == (0, 1)
    assert isinstance(failed.result, StepFailedError)
    assert isinstance(good.result, TextDelta)


@pytest.mark.parametrize(
    "params", [SamplingParams(logit_bias={32064: 1.0}), SamplingParams(stop_token_ids=(99999,))]
)
def test_ids_beyond_the_vocabulary_are_refused(
    make_engine: MakeEngine, params: SamplingParams
) -> None:
    with pytest.raises(RequestError, match="valid ids are 0 to 32063"):
        make_engine().check(params)
