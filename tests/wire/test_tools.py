"""Forced calls as OpenAI's and Azure's SDKs ask for them and read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema_rs
import openai
import pytest
from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.models import (
    AssistantMessage,
    ChatCompletionsNamedToolChoice,
    ChatCompletionsNamedToolChoiceFunction,
    ChatCompletionsToolChoicePreset,
    ChatCompletionsToolDefinition,
    FunctionDefinition,
    ToolMessage,
    UserMessage,
)
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError
from pydantic import BaseModel, Field

from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.wire import HELLO, chat, check_error, data_url, image_message, png


class Place(BaseModel):
    city: str = Field(max_length=8)
    days: int = Field(ge=1, le=9)


class GetWeather(BaseModel):
    """Forecast for a place."""

    place: Place
    unit: bool


class TakeNote(BaseModel):
    text: str = Field(max_length=12, pattern=r'^[a-z"\\{} ]*$')


MODELS: dict[str, type[BaseModel]] = {"GetWeather": GetWeather, "TakeNote": TakeNote}
TOOLS: Any = [openai.pydantic_function_tool(each) for each in MODELS.values()]
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
NAMED: Any = {"type": "function", "function": {"name": "TakeNote"}}
ALLOWED: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
MESSAGES: Any = [{"role": "user", "content": "What is the weather?"}]
CHOICES = pytest.mark.parametrize(
    ("choice", "reason"), [("required", "tool_calls"), (NAMED, "stop"), (ALLOWED, "tool_calls")]
)


@pytest.fixture(params=["/v1", ""])
def client(server: LiveServer, request: pytest.FixtureRequest) -> Iterator[Any]:
    """OpenAI's SDK on OpenAI's routes, and on Azure's."""
    base_url = server.url + request.param
    with openai.OpenAI(base_url=base_url, api_key=API_KEY, max_retries=0) as made:
        yield made


def asked(choice: Any, **more: Any) -> dict[str, Any]:
    defaults = {
        "model": "any",
        "messages": MESSAGES,
        "max_tokens": 300,
        "temperature": 1,
        "seed": 3,
    }
    return {**defaults, "tools": TOOLS, "tool_choice": choice, **more}


def check_call(call: Any) -> None:
    """That a call of either SDK's class is valid."""
    assert call.type == "function"
    assert call.id.startswith("call_")
    jsonschema_rs.validate(SCHEMAS[call.function.name], json.loads(call.function.arguments))


@CHOICES
def test_a_call_is_parsed(client: Any, choice: Any, reason: str) -> None:
    answer = client.chat.completions.parse(**asked(choice), parallel_tool_calls=False)
    (only,) = answer.choices
    (call,) = only.message.tool_calls
    check_call(call)
    assert isinstance(call.function.parsed_arguments, MODELS[call.function.name])
    assert (only.finish_reason, only.message.content) == (reason, None)
    assert choice == "required" or call.function.name == "TakeNote"


@CHOICES
def test_a_stream_adds_up_to_the_call(client: Any, choice: Any, reason: str) -> None:
    whole = client.chat.completions.create(**asked(choice)).choices[0].message.tool_calls[0]
    with client.chat.completions.stream(**asked(choice)) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        final = stream.get_final_completion().choices[0]
    (call,) = final.message.tool_calls
    check_call(call)
    assert (call.function.name, call.function.arguments) == (
        whole.function.name,
        whole.function.arguments,
    )
    assert (final.finish_reason, final.message.content) == (reason, None)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    (first, *others) = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
    assert deltas[0].role == "assistant"
    assert (first.index, first.id, first.type) == (0, call.id, "function")
    assert (first.function.name, first.function.arguments) == (call.function.name, "")
    assert len(others) > 1  # pieces as they are generated
    assert all(each.id is each.function.name is None for each in others)
    assert all(delta.content is None for delta in deltas)


def test_several_calls(client: Any) -> None:
    answers = client.chat.completions.create(**asked("required", n=8, temperature=2, top_p=1))
    calls = [choice.message.tool_calls[0] for choice in answers.choices]
    for call, choice in zip(calls, answers.choices, strict=True):
        if choice.finish_reason == "tool_calls":
            check_call(call)
    assert len({call.id for call in calls}) == 8
    assert len({call.function.arguments for call in calls}) > 1


@pytest.mark.parametrize("name", MODELS)
def test_the_model_chooses_the_function(server: LiveServer, name: str) -> None:
    """Its own logits, biased here, decide which function is called."""
    text = {"prompt": f'"{name}', "add_special_tokens": False, "return_token_strs": True}
    found = httpx2.post(f"{server.url}/tokenize", json=text, headers={"api-key": API_KEY}).json()
    pairs = zip(found["tokens"], found["token_strs"], strict=True)
    first = next(token for token, string in pairs if string.startswith(name[0]))
    body = {**asked("required"), "logit_bias": {str(first): 100}, "logprobs": True}
    (choice,) = chat(server, "/v1/chat/completions", **body).json()["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == name


def test_a_call_cut_short(client: Any) -> None:
    """The name is known where it is the only one; otherwise there may be no call yet."""
    only = client.chat.completions.create(**asked(NAMED, max_tokens=1)).choices[0]
    assert (only.finish_reason, only.message.tool_calls[0].function.name) == ("length", "TakeNote")
    assert only.message.tool_calls[0].function.arguments == ""
    several = client.chat.completions.create(**asked("required", max_tokens=1)).choices[0]
    assert (several.finish_reason, several.message.tool_calls) == ("length", None)
    stopped = client.chat.completions.create(**asked(NAMED, stop=['"text"'])).choices[0]
    assert stopped.message.tool_calls[0].function.arguments == "{"
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_log_probabilities_are_of_all_tokens(client: Any, choice: Any) -> None:
    whole = client.chat.completions.create(**asked(choice, logprobs=True))
    content = whole.choices[0].logprobs.content
    assert len(content) == whole.usage.completion_tokens
    spelled = b"".join(bytes(token.bytes) for token in content).decode().removeprefix(" ")
    call = whole.choices[0].message.tool_calls[0].function
    assert spelled == f'{{"name": "{call.name}", "arguments": {call.arguments}}}'
    streamed = [
        token
        for chunk in client.chat.completions.create(**asked(choice, logprobs=True), stream=True)
        for each in chunk.choices
        for token in (each.logprobs.content if each.logprobs else ())
    ]
    assert [token.token for token in streamed] == [token.token for token in content]


def test_a_call_comes_before_a_format(client: Any) -> None:
    wanted = {"response_format": {"type": "json_object"}}
    answer = client.chat.completions.create(**asked(NAMED, **wanted))
    check_call(answer.choices[0].message.tool_calls[0])


def test_none_drops_the_tools(client: Any) -> None:
    plain = client.chat.completions.create(model="any", messages=MESSAGES, max_tokens=4)
    dropped = client.chat.completions.create(**asked("none", max_tokens=4))
    assert dropped.usage.prompt_tokens == plain.usage.prompt_tokens
    assert dropped.choices[0].message.tool_calls is None


def test_results_go_back(client: Any, server: LiveServer) -> None:
    """The SDK's own message, with its call, and the result; then a free answer about them."""
    message = client.chat.completions.create(**asked(NAMED)).choices[0].message
    call = message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "written"}
    history = [*MESSAGES, message, result]
    free = client.chat.completions.create(model="any", messages=history, max_tokens=4)
    assert free.choices[0].message.content
    folded = [
        *MESSAGES,
        {
            "role": "assistant",
            "content": f'{{"name": "TakeNote", "arguments": {call.function.arguments}}}',
        },
        {"role": "user", "content": "Result of TakeNote: written"},
    ]
    same = client.chat.completions.create(model="any", messages=folded, max_tokens=4)
    assert free.usage.prompt_tokens == same.usage.prompt_tokens
    again = client.chat.completions.create(**asked("required", messages=history))
    check_call(again.choices[0].message.tool_calls[0])


def test_tokenize_counts_the_functions(server: LiveServer) -> None:
    body = {key: value for key, value in asked("required", max_tokens=1).items() if key != "model"}
    counted = httpx2.post(f"{server.url}/tokenize", json=body, headers={"api-key": API_KEY}).json()
    assert counted["count"] == chat(server, **body).json()["usage"]["prompt_tokens"]


AZURE_TOOLS = [
    ChatCompletionsToolDefinition(
        function=FunctionDefinition(name=name, description="", parameters=schema)
    )
    for name, schema in SCHEMAS.items()
]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (ChatCompletionsToolChoicePreset.REQUIRED, "tool_calls"),
        (
            ChatCompletionsNamedToolChoice(
                function=ChatCompletionsNamedToolChoiceFunction(name="TakeNote")
            ),
            "stop",
        ),
    ],
)
def test_azures_sdk(server: LiveServer, choice: Any, reason: str) -> None:
    client: Any = ChatCompletionsClient(server.url, AzureKeyCredential(API_KEY))
    question = UserMessage("What is the weather?")
    parameters: Any = {"tools": AZURE_TOOLS, "tool_choice": choice, "max_tokens": 300, "seed": 5}
    answer = client.complete(messages=[question], **parameters).choices[0]
    (call,) = answer.message.tool_calls
    check_call(call)
    assert answer.finish_reason == reason
    name, arguments = "", ""
    for update in client.complete(messages=[question], stream=True, **parameters):
        for piece in update.choices[0].delta.tool_calls or ():
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
    assert (name, arguments) == (call.function.name, call.function.arguments)
    more = [question, AssistantMessage(tool_calls=[call]), ToolMessage("ok", tool_call_id=call.id)]
    assert client.complete(messages=more, max_tokens=4).choices[0].message.content
    with pytest.raises(HttpResponseError, match="set tool_choice to 'required'"):
        client.complete(messages=[question], tools=AZURE_TOOLS)


def tool(name: str = "f", **parts: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **parts}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


SET = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
AUTO = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named("f")]}}
IN_MODE = ["tool_choice", "allowed_tools", "mode"]
# (body, code, location of the field)
LOOP = {"properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}
BAD: dict[str, tuple[dict[str, Any], str, list[Any]]] = {
    "tools alone": ({"tools": [tool()]}, "parameter_not_supported", ["tools"]),
    "auto": (
        {"tools": [tool()], "tool_choice": "auto"},
        "parameter_not_supported",
        ["tool_choice"],
    ),
    "allowed by auto": (
        {"tools": [tool()], "tool_choice": AUTO},
        "parameter_not_supported",
        IN_MODE,
    ),
    "no tools": ({"tool_choice": "required"}, "invalid_parameter", ["tool_choice"]),
    "not there": (
        {"tools": [tool()], "tool_choice": named("g")},
        "invalid_parameter",
        ["tool_choice", "function", "name"],
    ),
    "custom": (
        {"tools": [tool()], "tool_choice": {"type": "custom", "custom": {"name": "f"}}},
        "invalid_parameter",
        ["tool_choice"],
    ),
    "another kind": (
        {"tools": [{"type": "web_search"}], "tool_choice": "required"},
        "invalid_parameter",
        ["tools", 0, "type"],
    ),
    "no name": (
        {"tools": [tool("")], "tool_choice": "required"},
        "invalid_parameter",
        ["tools", 0, "function", "name"],
    ),
    "not supported by grammars": (
        {"tools": [tool("g"), tool(parameters=SET)], "tool_choice": "required"},
        "invalid_grammar",
        ["tools", 1, "function", "parameters", "properties", "a"],
    ),
    "an unknown reference": (
        {"tools": [tool(parameters={"$ref": "#/$defs/x"})], "tool_choice": "required"},
        "invalid_grammar",
        ["tools", 0, "function", "parameters"],
    ),
    "a loop": (
        {
            "tools": [tool(parameters={"$defs": {"a": {"$ref": "#/$defs/a"}}, **LOOP})],
            "tool_choice": "required",
        },
        "invalid_grammar",
        ["tools"],
    ),
    "a thousand": (
        {"tools": [tool(f"f{i}") for i in range(1000)], "tool_choice": "required"},
        "invalid_parameter",
        ["tools"],
    ),
    "megabytes": (
        {"tools": [tool(description="word " * 600_000)], "tool_choice": "required"},
        "invalid_parameter",
        ["tools"],
    ),
    "deep": (
        {
            "tools": [tool(parameters=json.loads('{"items":' * 150 + "{}" + "}" * 150))],
            "tool_choice": "required",
            "guided_regex": "a",
        },
        "invalid_parameter",
        ["guided_regex"],
    ),
    "ignoring the end": (
        {"tools": [tool()], "tool_choice": "required", "ignore_eos": True},
        "invalid_parameter",
        ["ignore_eos"],
    ),
    "a user's calls": (
        {"messages": [{**HELLO[0], "tool_calls": [{"id": "1", **tool()}]}]},
        "invalid_parameter",
        ["messages", 0, "tool_calls"],
    ),
    "functions": ({"functions": [{"name": "f"}]}, "parameter_not_supported", ["functions"]),
    "old calls": (
        {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}]},
        "parameter_not_supported",
        ["messages", 0, "function_call"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_called(server: LiveServer, name: str) -> None:
    body, code, loc = BAD[name]
    error = check_error(chat(server, "/v1/chat/completions", **body), 422, code, loc)
    assert loc[0] in error["message"]
    if code == "parameter_not_supported" and loc[0] in ("tools", "tool_choice"):
        assert "set tool_choice to 'required'" in error["message"]


def test_one_of_a_thousand_may_be_named(server: LiveServer) -> None:
    tools = [tool(f"f{i}") for i in range(1000)]
    body = {"tools": tools, "tool_choice": named("f999"), "max_tokens": 99}
    answer = chat(server, "/v1/chat/completions", **body).json()["choices"][0]["message"]
    assert answer["tool_calls"][0]["function"] == {"name": "f999", "arguments": "{}"}


def test_a_result_may_be_a_picture(server: LiveServer) -> None:
    """Such as a screenshot. A result whose call is not there is named by its id."""
    picture = image_message(data_url(png(40, 30)))[0]["content"]
    calls = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": {"a": 1}}}]
    messages = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": picture},
    ]
    body = {"messages": messages, "return_token_strs": True}
    counted = httpx2.post(f"{server.url}/tokenize", json=body, headers={"api-key": API_KEY}).json()
    text = "".join(each for each in counted["token_strs"] if each != "<|image_1|>")
    assert '{"name": "look", "arguments": {"a": 1}}<|end|>' in text
    assert "Result of look: <|end|>" in text
    assert counted["tokens"].count(-1) > 300
    assert chat(server, messages=messages).status_code == 200
    messages = [*HELLO, {"role": "tool", "tool_call_id": "7", "content": "x"}]
    body = {"messages": messages, "return_token_strs": True}
    counted = httpx2.post(f"{server.url}/tokenize", json=body, headers={"api-key": API_KEY}).json()
    assert "hello\nResult of 7: x<|end|>" in "".join(counted["token_strs"])
