"""Priorities: lower ones first among a caller's waiting requests; nobody else notices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.engine.engine import Engine
from tests.support.engines.engine_runs import GREEDY, MakeEngine, text_prompt

ONE = replace(GREEDY, max_tokens=1)
REQUESTS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2)), max_size=12)


def order(engine: Engine, requests: list[tuple[str, int]]) -> list[int]:
    """The positions of requests (caller and priority) in the order in which they finish, one at a time."""
    for i, (caller, priority) in enumerate(requests):
        engine.add(i, text_prompt(8, i), replace(ONE, priority=priority), caller=caller)
    finished = []
    while engine.has_work:
        finished += [output.key[0] for output in engine.step()]
    return finished


@pytest.fixture(scope="module")
def one_at_a_time(make_engine: MakeEngine) -> dict[bool, Engine]:
    return {
        trust: make_engine(max_num_seqs=1, prefix_caching=False, trust_priority=trust)
        for trust in (False, True)
    }


def test_within_a_caller(one_at_a_time: dict[bool, Engine]) -> None:
    requests = [("a", 0), ("b", 0), ("a", 1), ("a", -1), ("b", -5), ("a", 0)]
    # Places of a: 0, 2, 3, 5; of b: 1, 4.
    assert order(one_at_a_time[False], requests) == [3, 4, 0, 5, 1, 2]


def test_among_all_if_trusted(one_at_a_time: dict[bool, Engine]) -> None:
    requests = [("a", 0), ("b", 0), ("a", 1), ("a", -1), ("b", -5), ("a", 0)]
    assert order(one_at_a_time[True], requests) == [4, 3, 0, 1, 5, 2]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=REQUESTS, trust=st.booleans())
def test_any_requests(
    one_at_a_time: dict[bool, Engine], requests: list[tuple[str, int]], trust: bool
) -> None:
    """Each caller keeps the places of its requests, and fills them by priority, then arrival."""
    everyone = ["" if trust else caller for caller, _ in requests]
    queues = {
        name: iter(
            sorted(
                (i for i, caller in enumerate(everyone) if caller == name),
                key=lambda i: (requests[i][1], i),
            )
        )
        for name in everyone
    }
    assert order(one_at_a_time[trust], requests) == [next(queues[name]) for name in everyone]


def test_a_running_request_is_not_overtaken(make_engine: MakeEngine) -> None:
    """Nor is one that was preempted: what it has written would wait for those that come later."""
    engine = make_engine(max_num_seqs=2, num_blocks=129, prefix_caching=False)
    long = replace(GREEDY, max_tokens=200)
    for i in range(2):
        engine.add(i, text_prompt(1000, i), long, caller="a")
    while not engine.scheduler.num_preemptions:
        engine.step()
    engine.add(2, text_prompt(8, 2), replace(ONE, priority=-9), caller="a")
    assert [sequence.key[0] for sequence in engine.scheduler.waiting] == [1, 2]
    for request in range(3):
        engine.abort(request)
