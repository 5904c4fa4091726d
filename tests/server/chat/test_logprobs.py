"""Log probabilities: the bytes that pydantic would make of them, and what they may cost."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import model
from model.engine.generation import Generation
from server.batch.results import Results
from server.chat.answers import Answer, TextAnswer
from server.chat.completions import Envelope, FinishedCompletion, UsageIn, complete, stream
from server.chat.logprobs import json_numbers, pydantic_numbers
from server.schemas.batch import BatchResponse, BatchResult
from server.schemas.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Logprobs,
    TokenLogprob,
    TopLogprob,
)
from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server
from tests.support.servers.neighbours import FROZEN
from tests.support.servers.wire import HELLO, chat, check_error
from tests.support.waiting import eventually

USAGES = get_args(UsageIn)
# Of each kind that JSON spells in its own way.
TEXTS = [
    "a",
    " ",
    '"',
    "\\",
    "/",
    "\x00\x1f\x7f",
    "\b\f\n\r\t",
    "é",
    "\u2028",
    "\U0001f600",
    "\ufffd",
    "",
]
NUMBERS = [0.0, -0.0, -9999.0, -1e-5, -1.25e-7, -1e-4, -123456.0, -1e16, 1e22]
V1 = "/v1/chat/completions"
ENVELOPE = Envelope('a "choices":[] model', "the-id", 1_700_000_000)


def describe(token_id: int) -> tuple[str, bytes]:
    text = TEXTS[token_id % len(TEXTS)]
    return text, text.encode()


tokens = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from(NUMBERS) | st.floats(-50, 0, width=32)),
    min_size=1,
    max_size=6,
).map(
    lambda pairs: model.TokenLogprob(
        array("i", [token_id for token_id, _ in pairs]),
        array("f", [number for _, number in pairs]),
        describe,
    )
)


def answered(deltas: list[list[model.TokenLogprob]], numbers: Any) -> FinishedCompletion:
    """Two answers, of which the second has no log probabilities."""

    async def answer() -> FinishedCompletion:
        return await complete(generation_of(deltas), ENVELOPE, answers(), numbers)

    return asyncio.run(answer())


def answers() -> list[Answer]:
    return [TextAnswer(), TextAnswer()]


def generation_of(deltas: list[list[model.TokenLogprob]]) -> Generation:
    generation = Generation(7, 2, lambda: None)
    for i, logprobs in enumerate(deltas):
        reason: Literal["stop"] | None = "stop" if i == len(deltas) - 1 else None
        generation.put(model.TextDelta(0, TEXTS[i % 12], (1,), reason, tuple(logprobs)))
    generation.put(model.TextDelta(1, "null}", (1,), "length"))
    return generation


def as_pydantic_knows(logprobs: list[model.TokenLogprob]) -> Logprobs | None:
    def alternative(other: model.Alternative) -> dict[str, Any]:
        return {"token": other.text, "logprob": other.logprob, "bytes": list(other.bytes)}

    content = [
        TokenLogprob(
            **alternative(token.chosen),
            top_logprobs=[TopLogprob(**alternative(other)) for other in token.top],
        )
        for token in logprobs
    ]
    return Logprobs(content=content) if content else None


def dumped(answer: FinishedCompletion, deltas: list[list[model.TokenLogprob]]) -> ChatCompletion:
    """The same with log probabilities as pydantic knows them."""
    whole = answer.completion.model_copy(deep=True)
    whole.choices[0].logprobs = as_pydantic_knows([token for each in deltas for token in each])
    return whole


@given(st.lists(st.lists(tokens, max_size=3), min_size=1, max_size=5))
def test_the_bytes_of_an_answer(deltas: list[list[model.TokenLogprob]]) -> None:
    answer = answered(deltas, json_numbers)
    expected = json.dumps(
        dumped(answer, deltas).model_dump(),
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    )
    assert b"".join(answer.pieces()) == expected.encode()


@given(st.lists(st.lists(tokens, max_size=3), min_size=1, max_size=5), st.sampled_from(USAGES))
def test_the_bytes_of_a_stream(deltas: list[list[model.TokenLogprob]], usage_in: UsageIn) -> None:
    async def chunks() -> list[bytes]:
        return [c async for c in stream(generation_of(deltas), ENVELOPE, answers(), usage_in)]

    sent = asyncio.run(chunks())
    found = [ChatCompletionChunk.model_validate_json(chunk) for chunk in sent]
    hidden = {"usage"} if usage_in == "last" else None
    for chunk, bytes_sent in zip(found, sent, strict=True):
        exclude = hidden if chunk.usage is None else None
        assert bytes_sent == chunk.model_dump_json(exclude=exclude).encode()
    choices = [choice for chunk in found for choice in chunk.choices]
    content = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    expected = as_pydantic_knows([token for each in deltas for token in each])
    assert content == (expected.content if expected else [])


@given(deltas=st.lists(st.lists(tokens, max_size=3), min_size=1, max_size=5))
def test_the_bytes_of_a_batch(
    tmp_path_factory: pytest.TempPathFactory, deltas: list[list[model.TokenLogprob]]
) -> None:
    answer = answered(deltas, pydantic_numbers)
    body = dumped(answer, deltas).model_dump()

    def result(body: dict[str, Any]) -> BatchResult:
        response = BatchResponse(status_code=200, request_id="1", body=body)
        return BatchResult(id="batch_req_1", custom_id='"body":{}', response=response)

    path = tmp_path_factory.mktemp("batch") / "out.jsonl"
    results = Results(path)
    results.write(result({}), answer.pieces())
    results.close()
    assert path.read_bytes() == result(body).model_dump_json().encode() + b"\n"


def test_what_has_gathered_is_read_in_parts() -> None:
    """All of it in order, and never so much at once that a reader is busy with it for long."""
    token = model.TokenLogprob(array("i", range(21)), array("f", [-1.0] * 21), describe)

    async def read() -> list[model.TextDelta]:
        generation = Generation(7, 2, lambda: None)
        for position in range(500):
            for index in range(2):
                reason: Literal["stop"] | None = "stop" if position == 499 else None
                generation.put(
                    model.TextDelta(index, f"{position} ", (position,), reason, (token,))
                )
        return [delta async for delta in generation]

    deltas = asyncio.run(read())
    assert max(len(delta.logprobs) for delta in deltas) < 60
    for index in range(2):
        own = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in own) == "".join(f"{i} " for i in range(500))
        assert [i for delta in own for i in delta.token_ids] == list(range(500))
        assert [delta.finish_reason for delta in own] == [None] * (len(own) - 1) + ["stop"]


@pytest.fixture(scope="module")
def narrow(tiny: Path) -> Iterator[LiveServer]:
    """A server with room for the log probabilities of 65,536 tokens, and images of some crops."""
    live = start_server(
        *("--model", str(tiny), "--dtype", "float32", "--api-key", API_KEY),
        *("--max-waiting-memory", "0.0078125", "--max-num-seqs", "32"),
    )
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


def asked(n: int, tokens: int, top: int, **more: Any) -> dict[str, Any]:
    return {
        "n": n,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": top,
        **more,
    }


@pytest.mark.parametrize(("n", "tokens", "top"), [(64, 1200, 20), (128, 7900, 0), (9, 5300, 20)])
@pytest.mark.parametrize("stream", [False, True])
def test_more_than_a_request_may_have(
    narrow: LiveServer, n: int, tokens: int, top: int, stream: bool
) -> None:
    response = chat(narrow, V1, **asked(n, tokens, top, stream=stream))
    body = check_error(response, 422, "invalid_parameter", ["top_logprobs"])
    for word in ("n=", "max_tokens", "top_logprobs", "1000000", "ask for fewer"):
        assert word in body["message"]
    for _ in range(5):  # nothing of it is held
        assert chat(narrow).status_code == 200


def test_those_in_the_making_are_bounded(narrow: LiveServer) -> None:
    """One request may have more than there is room for; beside others it has to come again."""
    url, headers = f"{narrow.url}/v1/chat/completions", {"api-key": API_KEY}
    body = {"messages": HELLO, **asked(8, 5000, 20, stream=True)}
    with httpx2.stream("POST", url, json=body, headers=headers) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)  # it is held; a generator that nobody holds would close the response
        refused = chat(narrow, V1, **asked(1, 30, 20))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "log probabilities in flight take" in refused.json()["message"]
        assert chat(narrow).status_code == 200  # one without any
    eventually(lambda: chat(narrow, V1, **asked(1, 30, 20)).status_code == 200)


@pytest.mark.slow
def test_many_log_probabilities_hold_up_nobody(server: LiveServer) -> None:
    """Beside half a million of them, in one answer, a stream is right and health is told soon."""
    url, headers = f"{server.url}/v1/chat/completions", {"api-key": API_KEY}
    steady = {"messages": HELLO, "max_tokens": 7000, "ignore_eos": True, "temperature": 0}
    short = chat(server, V1, **{**steady, "max_tokens": 300})
    alone = short.json()["choices"][0]["message"]["content"]
    answers: list[httpx2.Response] = []
    asking = threading.Thread(target=lambda: answers.append(chat(server, V1, **asked(64, 370, 20))))
    text, waits = "", []
    with httpx2.stream("POST", url, json={**steady, "stream": True}, headers=headers) as response:
        lines = response.iter_lines()
        next(lines)
        asking.start()
        while asking.is_alive():
            started = time.perf_counter()
            assert httpx2.get(f"{server.url}/health").status_code == 200
            waits.append(time.perf_counter() - started)
        for line in lines:
            if line:
                choices = json.loads(line.removeprefix("data: "))["choices"]
                text += choices[0]["delta"]["content"]
            if len(text) > len(alone):
                break
    assert text.startswith(alone)
    assert max(waits) < FROZEN  # at once all of it would take eight seconds
    whole = answers[0]
    assert whole.status_code == 200
    assert int(whole.headers["content-length"]) == len(whole.content)
    choices = whole.json()["choices"]
    assert [len(choice["logprobs"]["content"]) for choice in choices] == [370] * 64
    assert {len(t["top_logprobs"]) for c in choices for t in c["logprobs"]["content"]} == {20}


@pytest.mark.parametrize("write", [json_numbers, pydantic_numbers])
def test_numbers_that_json_lacks_are_null(write: Any) -> None:
    assert write([-1.5, math.nan, -math.inf]) == ["-1.5", "null", "null"]
