"""The Responses API against a live server, with OpenAI's own clients."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
import pytest
from pydantic import BaseModel

from tests.support.client_environments import node_directory
from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.wire import AUTHORIZED, chart, chat, check_error

ASKED = "How many languages are in the world?"
PATHS = ["/v1", "/openai/v1", "/openai", "/api/projects/any-name/openai/v1"]
GREEDY: dict[str, Any] = {"model": "any", "input": ASKED, "max_output_tokens": 16, "temperature": 0}


class Place(BaseModel):
    city: Literal["Rome", "Paris"]  # so that a random model comes to an end
    rank: Literal[1, 2]


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as made:
        yield made


def create(client: openai.OpenAI, **parameters: Any) -> Any:
    return client.responses.create(**{**GREEDY, **parameters})


def in_chat(server: LiveServer, **body: Any) -> str:
    messages = [{"role": "user", "content": ASKED}]
    body = {"messages": messages, "max_tokens": 16, "temperature": 0, **body}
    answer = chat(server, "/v1/chat/completions", **body)
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("path", PATHS)
def test_the_answer_is_that_of_chat_on_all_paths(server: LiveServer, path: str) -> None:
    with openai.OpenAI(base_url=server.url + path, api_key=API_KEY, max_retries=0) as client:
        response = create(client, extra_query={"api-version": "2025-04-01-preview"})
        assert response.output_text == in_chat(server)
        assert client.responses.retrieve(response.id) == response
        again = create(client, previous_response_id=response.id)
        assert again.usage.input_tokens > response.usage.input_tokens
        assert [item.id for item in client.responses.input_items.list(again.id)]
        client.responses.delete(again.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(again.id)


def test_azures_client(server: LiveServer) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=server.url, api_key=API_KEY, api_version="2025-04-01-preview"
    ) as client:
        assert create(client).output_text == in_chat(server)


def test_the_fields_of_a_response(client: openai.OpenAI) -> None:
    response = create(
        client, metadata={"a": "b"}, instructions="Be kind.", user="me", include=[], tools=[]
    )
    assert (response.object, response.status) == ("response", "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.model == "phi3v-tiny"
    assert (response.error, response.completed_at) == (None, None)
    assert (response.metadata, response.instructions) == ({"a": "b"}, "Be kind.")
    assert (response.tools, response.tool_choice, response.parallel_tool_calls) == (
        [],
        "auto",
        True,
    )
    (item,) = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "incomplete")
    (part,) = item.content
    assert (part.type, part.annotations, part.logprobs) == ("output_text", [], [])
    usage = response.usage
    assert usage.output_tokens == 16
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens == 0
    cached = create(client, instructions="Be kind.", user="me").usage.input_tokens_details
    assert 0 < cached.cached_tokens < usage.input_tokens
    ended = create(client, extra_body={"logit_bias": {"32007": 100}})
    assert (ended.status, ended.incomplete_details, ended.output_text) == ("completed", None, "")
    assert ended.completed_at >= ended.created_at
    assert ended.output[0].status == "completed"


def test_a_stream_tells_the_same(client: openai.OpenAI) -> None:
    whole = create(client)
    events = list(create(client, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert deltas > 1
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * deltas,
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1].response
    assert text == last.output_text == whole.output_text
    assert last.usage.output_tokens == whole.usage.output_tokens
    assert {event.response.id for event in events if hasattr(event, "response")} == {last.id}
    assert client.responses.retrieve(last.id) == last


def test_the_stream_on_the_wire(server: LiveServer) -> None:
    body = {**GREEDY, "stream": True}
    response = httpx2.post(f"{server.url}/v1/responses", json=body, headers=AUTHORIZED)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events.pop() == ""
    for event in events:
        name, data = event.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]


def test_streaming_and_parsing_helpers(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {**GREEDY, "max_output_tokens": 300, "text_format": Place}
    parsed = client.responses.parse(**asked)
    assert isinstance(parsed.output_parsed, Place)
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert events[-1].type == "response.completed"
    assert final.output_parsed == parsed.output_parsed
    unfinished = create(client, text={"format": {"type": "json_object"}}, max_output_tokens=3)
    assert unfinished.output_text.lstrip().startswith("{")


def test_log_probabilities(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 3}
    whole = create(client, **asked)
    tokens = whole.output[0].content[0].logprobs
    assert len(tokens) == whole.usage.output_tokens
    for token in tokens:
        assert token.top_logprobs[0].token == token.token  # greedy
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-6
    events = list(create(client, stream=True, **asked))
    streamed = [each for event in events for each in getattr(event, "logprobs", None) or []]
    half = len(streamed) // 2  # in the deltas, and in the end of the text
    assert [each.token for each in streamed[:half]] == [token.token for token in tokens]
    assert [each.token for each in streamed[half:]] == [token.token for token in tokens]
    assert events[-1].response.output[0].content[0].logprobs == tokens
    assert client.responses.retrieve(whole.id) == whole


def test_images(client: openai.OpenAI) -> None:
    def tokens(detail: str) -> int:
        parts = [
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": chart(), "detail": detail},
        ]
        response = create(client, input=[{"role": "user", "content": parts}], max_output_tokens=2)
        more = create(client, previous_response_id=response.id, max_output_tokens=2)
        assert more.usage.input_tokens > response.usage.input_tokens  # the image is still there
        return int(response.usage.input_tokens)

    assert tokens("auto") == tokens("high") > 700
    assert 313 < tokens("low") < 400


def test_a_conversation_is_continued_as_if_it_was_sent_whole(client: openai.OpenAI) -> None:
    first = create(client, instructions="Be kind.")
    second = create(client, previous_response_id=first.id, input="And dialects?")
    said = [{"role": "user", "content": ASKED}, *first.output]
    whole = create(client, input=[*said, {"role": "user", "content": "And dialects?"}])
    assert second.output_text == whole.output_text  # without the first one's instructions
    assert second.usage.input_tokens == whole.usage.input_tokens
    referred = [{"type": "item_reference", "id": first.output[0].id}]
    also = create(client, input=[said[0], *referred, {"role": "user", "content": "And dialects?"}])
    assert also.output_text == whole.output_text
    third = create(client, previous_response_id=second.id, input="Why?", stream=True)
    last = list(third)[-1].response
    assert last.previous_response_id == second.id
    assert last.usage.input_tokens > second.usage.input_tokens
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as broken:
        create(client, previous_response_id=last.id)
    assert (broken.value.code, broken.value.param) == (
        "previous_response_not_found",
        "previous_response_id",
    )


def text_of(item: Any) -> str:
    return str(item.content[0].text)


def test_input_items_in_pages(client: openai.OpenAI) -> None:
    items = [{"role": "user", "content": f"number {i}"} for i in range(5)]
    response = create(client, input=items)
    page = client.responses.input_items.list(response.id, limit=2, order="asc")
    assert page.has_more
    texts = [text_of(item) for item in page]
    assert texts == [f"number {i}" for i in range(5)]  # the client fetches the other pages
    newest = client.responses.input_items.list(response.id).data
    assert [text_of(item) for item in newest] == texts[::-1]
    for wrong in ({"limit": 101}, {"order": "best"}):
        with pytest.raises(openai.UnprocessableEntityError):
            client.responses.input_items.list(response.id, extra_query=wrong)
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list(response.id, after="msg_none")


def test_what_is_not_stored_is_not_found(client: openai.OpenAI) -> None:
    response = create(client, store=False)
    assert response.store is False
    for missing in (response.id, "resp_" + "0" * 32, "%2e%2e"):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(missing)
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(missing)
        with pytest.raises(openai.NotFoundError):
            client.responses.input_items.list(missing)
        with pytest.raises(openai.NotFoundError):
            client.responses.cancel(missing)
        with pytest.raises(openai.NotFoundError):
            create(client, previous_response_id=missing)
    kept = create(client)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(kept.id)
    with pytest.raises(openai.UnprocessableEntityError):
        client.responses.retrieve(kept.id, stream=True)
    strangers = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        strangers.responses.retrieve(kept.id)
    with pytest.raises(openai.AuthenticationError):
        create(strangers)


def test_async_client(server: LiveServer) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY) as client:
            many = [client.responses.create(**{**GREEDY, "input": f"number {i}"}) for i in range(6)]
            texts = [response.output_text for response in await asyncio.gather(*many)]
            async with client.responses.stream(**{**GREEDY, "input": "number 0"}) as stream:
                pieces = [e.delta async for e in stream if e.type == "response.output_text.delta"]
            return [*texts, "".join(pieces)]

    *texts, streamed = asyncio.run(ask())
    assert len(set(texts)) > 1
    assert streamed == texts[0]


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first test installs the packages
def test_openais_client_for_javascript(server: LiveServer) -> None:
    command: list[str | Path] = [
        "node",
        node_directory() / "openai_responses.mjs",
        f"{server.url}/v1",
        API_KEY,
        chart(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["text"] == result["streamed"] == result["retrieved"] == in_chat(server)
    assert result["kinds"][0] == "response.created"
    assert result["kinds"][-1] == "response.incomplete"
    Place.model_validate(result["parsed"])
    kind, name, arguments = result["called"]
    assert (kind, name) == ("function_call", "visit")
    Place.model_validate(arguments)
    assert result["continued"] > result["input"]
    assert result["image"] > 700
    assert (result["deleted"], result["error"]) == (404, [422, "top_p"])


def test_errors_are_the_servers_own(server: LiveServer) -> None:
    url = f"{server.url}/v1/responses"
    for body, loc in (
        ({**GREEDY, "temperature": 9}, ["temperature"]),
        ({**GREEDY, "input": [{"role": "king", "content": "x"}]}, ["input", 0, "role"]),
    ):
        refused = httpx2.post(url, json=body, headers=AUTHORIZED)
        check_error(refused, 422, "invalid_parameter", loc)
