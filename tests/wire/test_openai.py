"""The OpenAI SDK against a live server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.wire import chart

MESSAGES: Any = [{"role": "user", "content": "How many languages are in the world?"}]


@pytest.fixture(params=["/v1", ""])
def client(server: LiveServer, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    """With the usual base URL, and with the root, which is Azure's dialect."""
    base_url = server.url + request.param
    with openai.OpenAI(base_url=base_url, api_key=API_KEY, max_retries=0) as made:
        yield made


def complete(client: openai.OpenAI, **parameters: Any) -> Any:
    defaults = {"model": "any", "messages": MESSAGES, "max_tokens": 16, "temperature": 0}
    return client.chat.completions.create(**{**defaults, **parameters})


def test_answer(client: openai.OpenAI) -> None:
    answer = complete(client, user="me", metadata={"a": "b"}, store=False)
    assert answer.object == "chat.completion"
    assert answer.model == "phi3v-tiny"
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 16
    assert complete(client, max_completion_tokens=3, max_tokens=None).usage.completion_tokens == 3


def test_conversation_takes_its_own_answers_back(client: openai.OpenAI) -> None:
    message = complete(client).choices[0].message.model_dump()
    assert "tool_calls" in message
    more = [*MESSAGES, message, {"role": "user", "content": "And dialects?", "name": "me"}]
    assert complete(client, messages=more).choices[0].message.content


def test_stream_with_and_without_usage(client: openai.OpenAI) -> None:
    whole = complete(client)
    plain = list(complete(client, stream=True))
    assert "".join(c.choices[0].delta.content for c in plain) == whole.choices[0].message.content
    assert plain[-1].usage == whole.usage
    counted = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert counted[-1].choices == []
    assert counted[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in counted[:-1])
    assert all("usage" in chunk.model_fields_set for chunk in counted)


def test_image(client: openai.OpenAI) -> None:
    def tokens(detail: str) -> int:
        parts = [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": chart(), "detail": detail}},
        ]
        answer = complete(client, messages=[{"role": "user", "content": parts}], max_tokens=2)
        return int(answer.usage.prompt_tokens)

    assert tokens("auto") == tokens("high") > 700
    assert 313 < tokens("low") < 400


def test_n_answers_whole_and_streamed(client: openai.OpenAI) -> None:
    sampled: dict[str, Any] = {"n": 3, "temperature": 1.0, "seed": 5}
    whole = complete(client, **sampled)
    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    streamed = ["", "", ""]
    roles, reasons = [], {}
    for chunk in complete(client, stream=True, **sampled):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content
            if choice.delta.role:
                roles.append(choice.index)
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert streamed == texts
    assert roles == [0, 1, 2]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert whole.usage.completion_tokens > 16


def test_same_seed_same_text(client: openai.OpenAI) -> None:
    def text(seed: int) -> str:
        answer = complete(client, seed=seed, temperature=1.0, top_p=0.95)
        return str(answer.choices[0].message.content)

    assert text(1) == text(1) != text(2)


def test_logprobs_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"logprobs": True, "top_logprobs": 3}
    whole = complete(client, **asked)
    content = whole.choices[0].logprobs.content
    assert len(content) == whole.usage.completion_tokens
    for token in content:
        assert token.top_logprobs[0].token == token.token  # greedy
        assert len(token.top_logprobs) == 3
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-6
    spelled = b"".join(bytes(token.bytes) for token in content).decode().removeprefix(" ")
    assert spelled == whole.choices[0].message.content
    streamed = [
        token
        for chunk in complete(client, stream=True, **asked)
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content
    ]
    assert streamed == content


def test_stop_and_bias(client: openai.OpenAI) -> None:
    text = complete(client).choices[0].message.content
    stop = text[5:8]
    for value in (stop, [stop, "zzzz"]):
        cut = complete(client, stop=value)
        assert cut.choices[0].message.content == text[: text.index(stop)]
        assert cut.choices[0].finish_reason == "stop"
    ended = complete(client, logit_bias={"32007": 100})
    assert (ended.choices[0].message.content, ended.choices[0].finish_reason) == ("", "stop")


def test_engine_extras(server: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY) as client:
        extras = {"top_k": 1, "ignore_eos": True, "min_tokens": 2, "repetition_penalty": 1.1}
        assert complete(client, temperature=1.0, extra_body=extras).usage.completion_tokens == 16
        assert complete(client, extra_body={"colour": 1}).usage.completion_tokens == 16
        strict = {"extra-parameters": "error"}
        with pytest.raises(openai.BadRequestError, match="colour"):
            complete(client, extra_body={"colour": 1}, extra_headers=strict)


def test_models(server: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY) as client:
        assert [model.id for model in client.models.list()] == ["phi3v-tiny"]
        assert client.models.retrieve("phi3v-tiny").owned_by == "phi3v-server"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-4o")


def test_errors_are_the_right_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        complete(client, top_p=2)
    assert (caught.value.code, caught.value.param) == ("invalid_parameter", "top_p")
    with pytest.raises(openai.BadRequestError) as long:
        complete(client, messages=[{"role": "user", "content": "word " * 50_000}])
    assert long.value.code == "context_length_exceeded"
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        complete(stranger)


def test_async_client_many_at_once(server: LiveServer) -> None:
    """More requests than fit into one batch; each answer equals the one it gets alone."""

    async def ask(client: openai.AsyncOpenAI, i: int) -> str:
        answer = await client.chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": f"Tell me about number {i}"}],
            max_tokens=16,
            temperature=0,
        )
        return answer.choices[0].message.content or ""

    async def talk() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY) as client:
            together = await asyncio.gather(*(ask(client, i) for i in range(24)))
            alone = [await ask(client, i) for i in range(24)]
        return list(together), alone

    together, alone = asyncio.run(talk())
    assert together == alone
