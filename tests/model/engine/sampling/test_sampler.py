"""Laws of sampling, on logits made for the purpose."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.engine.request import SamplingParams
from model.engine.sampling.logits_processors import process
from model.engine.sampling.drawing import uniform
from model.engine.sampling.sampler import sample
from model.engine.scheduling.sequence import Sequence
from model.engine.text.detokenizer import Detokenizer
from model.phi3v.inputs.processing import PromptInputs
from model.phi3v.inputs.tokenizer import Phi3VTokenizer

VOCABULARY = 1000


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Phi3VTokenizer:
    return Phi3VTokenizer(tiny)


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(5)) * 2


def sequence(
    tokenizer: Phi3VTokenizer, prompt: tuple[int, ...] | list[int] = (1, 7, 8), **params: Any
) -> Sequence:
    return Sequence(
        (0, 0),
        PromptInputs(list(prompt)),
        SamplingParams(**params),
        100,
        frozenset({2}),
        Detokenizer(tokenizer, ()),
    )


def draws(
    tokenizer: Phi3VTokenizer, logits: torch.Tensor, count: int, **params: Any
) -> Counter[int]:
    sequences = [sequence(tokenizer, seed=seed, **params) for seed in range(count)]
    return Counter(s.token_id for s in sample(logits.expand(count, -1), sequences))


def test_greedy_takes_the_best(tokenizer: Phi3VTokenizer, logits: torch.Tensor) -> None:
    assert draws(tokenizer, logits, 5, temperature=0) == {int(logits.argmax()): 5}
    assert draws(tokenizer, logits, 5, temperature=1e-9) == {int(logits.argmax()): 5}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(
    tokenizer: Phi3VTokenizer, logits: torch.Tensor, temperature: float
) -> None:
    count = 4000
    drawn = draws(tokenizer, logits, count, temperature=temperature)
    expected = (logits / temperature).softmax(-1)
    for token_id in expected.topk(5).indices.tolist():
        p = float(expected[token_id])
        assert drawn[token_id] / count == pytest.approx(p, abs=4 * (p / count) ** 0.5)


@pytest.mark.parametrize(
    "cut",
    [
        {"top_p": 0.3},
        {"top_p": 0.95},
        {"top_p": 0.999},
        {"top_k": 3},
        {"top_k": 700},
        {"top_k": 50, "top_p": 0.5},
        {"top_k": 700, "top_p": 0.5},
        {"min_p": 0.2},
        {"min_p": 0.001},
        {"top_p": 0.0},
    ],
)
def test_cuts_keep_exactly_the_right_tokens(
    tokenizer: Phi3VTokenizer, logits: torch.Tensor, cut: dict[str, float]
) -> None:
    """A brute-force reference, against draws and against rows decided in other company."""
    p = logits.softmax(-1)
    ordered = p.sort(descending=True)
    keep = torch.arange(VOCABULARY) < (cut.get("top_k") or VOCABULARY)
    mass = (ordered.values * keep).sum()
    before = (ordered.values * keep).cumsum(0) - ordered.values * keep
    in_top_p = before < cut.get("top_p", 1.0) * mass
    in_top_p[0] = True
    keep &= in_top_p & (ordered.values >= cut.get("min_p", 0.0) * ordered.values[0])
    allowed = set(ordered.indices[keep].tolist())
    drawn = draws(tokenizer, logits, 3000, **cut)
    assert set(drawn) <= allowed
    weight = {i: float(p[i] / p[list(allowed)].sum()) for i in allowed}
    for token_id in sorted(allowed, key=lambda i: -weight[i])[:4]:
        share = weight[token_id]
        assert drawn[token_id] / 3000 == pytest.approx(share, abs=4 * (share / 3000) ** 0.5)


@given(
    st.lists(
        st.builds(
            SamplingParams,
            temperature=st.sampled_from([0.0, 0.7, 1.0]),
            top_p=st.sampled_from([0.5, 0.9, 1.0]),
            top_k=st.sampled_from([0, 5, 400]),
            min_p=st.sampled_from([0.0, 0.1]),
            presence_penalty=st.sampled_from([0.0, 1.0]),
            repetition_penalty=st.sampled_from([1.0, 1.3]),
            seed=st.integers(0, 10),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_rows_do_not_depend_on_their_neighbours(
    tokenizer: Phi3VTokenizer, params: list[SamplingParams]
) -> None:
    logits = torch.randn(len(params), VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3

    def make(p: SamplingParams) -> Sequence:
        made = sequence(tokenizer)
        made.params = p
        made.seed = p.seed or 0
        made.append(17)
        return made

    together = sample(logits, [make(p) for p in params])
    alone = [sample(logits[i : i + 1], [make(p)])[0] for i, p in enumerate(params)]
    assert together == alone


@pytest.mark.parametrize("cut", [{}, {"top_p": 0.5}, {"top_k": 5}, {"temperature": 2e-5}])
@pytest.mark.parametrize(
    ("params", "spoiled"), [({"repetition_penalty": 1e-38}, 10.0), ({}, torch.nan), ({}, torch.inf)]
)
def test_rows_of_overflowing_logits_choose_a_token_and_spare_their_neighbours(
    tokenizer: Phi3VTokenizer,
    logits: torch.Tensor,
    params: dict[str, Any],
    spoiled: float,
    cut: dict[str, Any],
) -> None:
    odd = logits.clone()
    odd[7] = spoiled  # a token of the prompt
    rows = [sequence(tokenizer, seed=seed, **cut) for seed in range(20)]
    rows[3] = sequence(tokenizer, seed=3, **params, **cut)
    batch = torch.stack([odd if row == 3 else logits for row in range(20)])
    chosen = sample(batch, rows)
    alone = sample(logits.expand(20, -1), [sequence(tokenizer, seed=s, **cut) for s in range(20)])
    assert 0 <= chosen[3].token_id < VOCABULARY
    assert chosen[:3] + chosen[4:] == alone[:3] + alone[4:]
    if params:
        assert chosen[3].token_id in (1, 7, 8)  # those whose logits went to the limit


def test_a_row_of_forbidden_tokens_chooses_one(tokenizer: Phi3VTokenizer) -> None:
    made = sequence(tokenizer, min_tokens=1)
    made.stop_ids = frozenset(range(VOCABULARY))
    assert 0 <= sample(torch.zeros(1, VOCABULARY), [made])[0].token_id < VOCABULARY


def test_penalties_and_bias(tokenizer: Phi3VTokenizer) -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 10], logits[0, 11], logits[0, 12] = 3.0, 2.8, 1.0

    def best(**params: Any) -> int:
        made = sequence(tokenizer, temperature=0, **params)
        made.append(10)
        made.append(10)
        return sample(logits, [made])[0].token_id

    assert best() == 10
    assert best(presence_penalty=0.1) == 10
    assert best(presence_penalty=0.3) == 11
    assert best(frequency_penalty=0.09) == 10
    assert best(frequency_penalty=0.11) == 11
    assert best(repetition_penalty=1.2) == 11
    assert best(logit_bias={12: 2.5}) == 12
    assert best(logit_bias={10: -100, 11: -100}) == 12
    assert logits[0, 10] == 3.0  # the input is not touched


def test_repetition_penalty_sees_the_prompt(tokenizer: Phi3VTokenizer) -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 7], logits[0, 9] = 2.0, 1.9
    made = sequence(tokenizer, temperature=0, repetition_penalty=1.5)
    assert sample(logits, [made])[0].token_id == 9


@given(
    st.lists(st.integers(-1, 40), max_size=60),
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=3), max_size=10),
    st.fixed_dictionaries(
        {
            "repetition_penalty": st.floats(0.5, 3),
            "presence_penalty": st.floats(-2, 2),
            "frequency_penalty": st.floats(-2, 2),
        }
    ),
)
def test_penalties_of_a_growing_sequence(
    tokenizer: Phi3VTokenizer,
    prompt: list[int],
    steps: list[list[int]],
    penalties: dict[str, float],
) -> None:
    """The same bits as when all tokens are counted anew in each step, however it is tried again."""
    made = sequence(tokenizer, prompt, **penalties)
    random = torch.Generator().manual_seed(1)
    for step in [[], *steps]:
        for token_id in step:
            made.append(token_id)
        logits = torch.randn(1, 50, generator=random) * 3
        expected = counted_anew(logits[0], prompt, made.token_ids[len(prompt) :], penalties)
        assert torch.equal(process(logits, [made])[0], expected)
        assert torch.equal(process(logits, [made])[0], expected)


def counted_anew(
    logits: torch.Tensor, prompt: list[int], output: list[int], penalties: dict[str, float]
) -> torch.Tensor:
    logits = logits.clone()
    ids = [token_id for token_id in {*prompt, *output} if token_id >= 0]
    values, penalty = logits[ids], penalties["repetition_penalty"]
    logits[ids] = torch.where(values > 0, values / penalty, values * penalty)
    counts = Counter(output)
    times = torch.tensor(list(counts.values()), dtype=torch.float32)
    subtracted = penalties["presence_penalty"] + penalties["frequency_penalty"] * times
    logits[list(counts)] -= subtracted
    return logits


def test_a_long_prompt_is_counted_once(tokenizer: Phi3VTokenizer) -> None:
    made = sequence(tokenizer, list(range(VOCABULARY)) * 2000, repetition_penalty=1.2)
    logits = torch.zeros(1, VOCABULARY)
    started = time.thread_time()
    process(logits, [made])
    first = time.thread_time() - started
    started = time.thread_time()
    for token_id in range(20):
        made.append(token_id)
        process(logits, [made])
    assert time.thread_time() - started < first


def test_stop_tokens_wait_for_min_tokens(tokenizer: Phi3VTokenizer) -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 2] = 50.0
    made = sequence(tokenizer, temperature=0, min_tokens=1)
    assert sample(logits, [made])[0].token_id != 2
    made.append(5)
    assert sample(logits, [made])[0].token_id == 2


def test_logprobs_are_of_the_raw_logits(tokenizer: Phi3VTokenizer, logits: torch.Tensor) -> None:
    made = sequence(tokenizer, temperature=0.3, logit_bias={4: 100.0}, logprobs=3, seed=1)
    plain = sequence(tokenizer, temperature=0)
    first, second = sample(torch.stack([logits, logits]), [made, plain])
    expected = logits.log_softmax(-1)
    assert first.token_id == 4
    assert first.logprob == pytest.approx(float(expected[4]), abs=1e-5)
    best = expected.topk(3)
    assert [pair[0] for pair in first.top] == best.indices.tolist()
    assert [pair[1] for pair in first.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert (second.logprob, second.top) == (None, ())


def test_seed_and_position_decide(tokenizer: Phi3VTokenizer, logits: torch.Tensor) -> None:
    made = sequence(tokenizer, seed=3)
    first = sample(logits[None], [made])[0].token_id
    made.append(first)
    assert sample(logits[None], [sequence(tokenizer, seed=3)])[0].token_id == first
    assert uniform(3, 0) != uniform(3, 1)
    assert uniform(3, 0) != uniform(4, 0)
    unseeded = {sequence(tokenizer).seed for _ in range(5)}
    assert len(unseeded) == 5


def test_uniform_is_uniform() -> None:
    numbers = torch.tensor([uniform(seed, p) for seed in range(100) for p in range(100)])
    assert 0 <= float(numbers.min()) < 0.001
    assert 0.999 < float(numbers.max()) < 1
    counts = torch.histc(numbers, bins=10, min=0, max=1)
    assert float(counts.min()) > 880
    assert float(counts.max()) < 1120
    assert replace(SamplingParams(), seed=-1).seed == -1  # negative seeds are seeds too
    assert uniform(-1, 0) != uniform(1, 0)
