"""Forced calls in the Responses API, with OpenAI's client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from pydantic import BaseModel, Field

from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.wire import AUTHORIZED


class GetWeather(BaseModel):
    city: str = Field(max_length=8)
    days: int = Field(ge=1, le=9)


class TakeNote(BaseModel):
    text: str = Field(max_length=12, pattern="^[a-z ]*$")


MODELS: dict[str, type[BaseModel]] = {"GetWeather": GetWeather, "TakeNote": TakeNote}
TOOLS: Any = [
    {"type": "function", **openai.pydantic_function_tool(each)["function"]}
    for each in MODELS.values()
]
NAMED: Any = {"type": "function", "name": "TakeNote"}
ALLOWED: Any = {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}
ASKED: dict[str, Any] = {
    "model": "any",
    "input": "What is the weather?",
    "max_output_tokens": 300,
    "temperature": 1,
    "tools": TOOLS,
    "extra_body": {"seed": 3},
}
CHOICES = pytest.mark.parametrize("choice", ["required", NAMED, ALLOWED])


@pytest.fixture
def client(server: LiveServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as made:
        yield made


@CHOICES
def test_a_call_whole_and_streamed(client: Any, choice: Any) -> None:
    whole = client.responses.create(**ASKED, tool_choice=choice)
    assert (whole.status, whole.output_text) == ("completed", "")
    (call,) = whole.output
    assert (call.type, call.status) == ("function_call", "completed")
    MODELS[call.name].model_validate_json(call.arguments)
    assert choice == "required" or call.name == "TakeNote"
    echoed = (
        whole.tool_choice if isinstance(whole.tool_choice, str) else whole.tool_choice.to_dict()
    )
    assert echoed == choice
    with client.responses.stream(**ASKED, tool_choice=choice) as stream:
        events = list(stream)
        (streamed,) = stream.get_final_response().output
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("function_call_arguments.delta")
    assert deltas > 1
    assert kinds == [
        *("created", "in_progress", "output_item.added"),
        *["function_call_arguments.delta"] * deltas,
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    assert events[2].item.name == call.name
    assert events[2].item.call_id == streamed.call_id


def test_a_call_is_parsed(client: Any) -> None:
    (call,) = client.responses.parse(**ASKED, tool_choice="required").output
    assert call.parsed_arguments == json.loads(call.arguments)
    MODELS[call.name].model_validate(call.parsed_arguments)


def test_a_call_that_is_cut_short(client: Any) -> None:
    asked = {**ASKED, "max_output_tokens": 12, "tool_choice": NAMED}
    response = client.responses.create(**asked)
    (call,) = response.output
    assert (response.status, call.status) == ("incomplete", "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"


def test_results_continue_the_conversation(client: Any) -> None:
    first = client.responses.create(**ASKED, tool_choice=NAMED)
    (call,) = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "It rains."}
    asked: dict[str, Any] = {"model": "any", "max_output_tokens": 8, "temperature": 0}
    second = client.responses.create(**asked, input=[result], previous_response_id=first.id)
    said = {"role": "user", "content": ASKED["input"]}
    whole = client.responses.create(**asked, input=[said, call, result])
    assert second.output_text == whole.output_text
    assert second.usage.input_tokens == whole.usage.input_tokens
    kinds = [item.type for item in client.responses.input_items.list(whole.id, order="asc")]
    assert kinds == ["message", "function_call", "function_call_output"]


def test_log_probabilities_are_only_for_text(client: Any) -> None:
    asked = {**ASKED, "include": ["message.output_text.logprobs"], "tool_choice": NAMED}
    (call,) = client.responses.create(**asked).output
    assert call.type == "function_call"


def test_what_is_ignored_is_named(server: LiveServer) -> None:
    url = f"{server.url}/v1/responses"
    body = {"input": "hello", "max_output_tokens": 2, "colour": 1, "user": "me"}
    for stream in (False, True):
        answer = httpx2.post(url, json={**body, "stream": stream}, headers=AUTHORIZED)
        assert answer.status_code == 200
        assert set(answer.headers["x-ignored-parameters"].split(", ")) == {"colour", "user"}
    strict = AUTHORIZED | {"extra-parameters": "error"}
    assert httpx2.post(url, json=body, headers=strict).status_code == 400
