"""Guaranteed JSON through the real clients, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import httpx2
import jsonschema_rs
import openai
import pytest
from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.models import ChatRequestMessage, JsonSchemaFormat, UserMessage
from azure.core.credentials import AzureKeyCredential
from pydantic import BaseModel, ConfigDict, Field

from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.wire import chat, check_error

MESSAGES: Any = [{"role": "user", "content": "Describe a pet."}]


class Tag(BaseModel):
    model_config = ConfigDict(extra="forbid")
    word: str = Field(max_length=8)


class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=30)
    name: str | None = Field(max_length=10)
    tags: list[Tag] = Field(max_length=2)


def schema_format(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def test_openai_parses_into_a_model(server: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY) as client:
        for seed in range(3):
            answer = client.chat.completions.parse(
                model="any", messages=MESSAGES, response_format=Pet, seed=seed
            )
            assert isinstance(answer.choices[0].message.parsed, Pet)
            assert answer.choices[0].finish_reason == "stop"


def test_azure_json_schema_format(server: LiveServer) -> None:
    wanted = JsonSchemaFormat(
        name="pet", schema=Pet.model_json_schema(), description="a pet", strict=True
    )
    with ChatCompletionsClient(server.url, AzureKeyCredential(API_KEY)) as client:
        messages: list[ChatRequestMessage] = [UserMessage("Describe a pet.")]
        answer = client.complete(messages=messages, response_format=wanted)
        Pet.model_validate_json(answer.choices[0].message.content)


@pytest.mark.parametrize("wanted", ["json_object", {"type": "json_object"}])
def test_any_object(server: LiveServer, wanted: Any) -> None:
    """A model of noise ends no object by itself: what there is of it is a prefix of one."""
    answer = chat(server, response_format=wanted, max_tokens=40).json()["choices"][0]
    text = answer["message"]["content"]
    assert text.startswith("{")
    if answer["finish_reason"] == "stop":
        json.loads(text)
    else:
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)


def test_streamed_with_n_and_log_probabilities(server: LiveServer) -> None:
    schema = Pet.model_json_schema()
    asked: dict[str, Any] = {
        "response_format": schema_format(schema),
        "n": 3,
        "seed": 3,
        "max_tokens": 200,
        "logprobs": True,
        "stream": True,
    }
    texts, spelled = ["", "", ""], [b"", b"", b""]
    for line in chat(server, **asked).text.split("\n\n")[:-2]:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            texts[choice["index"]] += choice["delta"]["content"]
            for token in (choice["logprobs"] or {}).get("content", []):
                spelled[choice["index"]] += bytes(token["bytes"])
    assert len(set(texts)) > 1
    for text, raw in zip(texts, spelled, strict=True):
        jsonschema_rs.validate(schema, json.loads(text))
        assert raw.decode() == f" {text}"


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_regex": "[a-c]{3}-[0-9]"}, "[a-c]{3}-[0-9]"),
        ({"guided_choice": ["yes", "no (never)", "ça va / très bien\n"]}, None),
        ({"guided_grammar": 'root ::= "a" ("b" | "c")'}, "a[bc]"),
    ],
)
def test_guided_extras(server: LiveServer, extra: dict[str, Any], pattern: str | None) -> None:
    answers = [
        chat(server, headers={"extra-parameters": "pass-through"}, max_tokens=40, **extra),
        chat(server, "/v1/chat/completions", max_tokens=40, temperature=2, **extra),
    ]
    for answer in answers:
        choice = answer.json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        text = choice["message"]["content"]
        if pattern is None:
            assert text in extra["guided_choice"]
        else:
            assert re.fullmatch(pattern, text)
    check_error(chat(server, **extra), 400, "extra_forbidden", list(extra))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wanted", "code", "place"),
    [
        (schema_format({"type": "strin"}), "invalid_grammar", ["json_schema", "schema"]),
        (
            schema_format({"type": "object", "properties": {"a": {"not": {}}}}),
            "invalid_grammar",
            ["json_schema", "schema", "properties", "a"],
        ),
        ({"type": "json_schema"}, "invalid_parameter", ["json_schema"]),
        ({"type": "xml"}, "invalid_parameter", ["type"]),
        ({"type": "json_object", "colour": 1}, "extra_forbidden", ["colour"]),
        (schema_format([]), "invalid_parameter", ["json_schema", "schema"]),
        (schema_format({}, strict="yes"), "invalid_parameter", ["json_schema", "strict"]),
    ],
)
def test_schemas_that_cannot_be_used(
    server: LiveServer, wanted: Any, code: str, place: list[Any], stream: bool
) -> None:
    response = chat(server, response_format=wanted, stream=stream)
    check_error(response, 422, code, ["response_format", *place])


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"response_format": "json_object", "guided_regex": "a"}, "guided_regex"),
        ({"response_format": "json_object", "ignore_eos": True}, "ignore_eos"),
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_grammar": "start: nowhere"}, "guided_grammar"),
    ],
)
def test_what_contradicts_itself(
    server: LiveServer, parameters: dict[str, Any], named: str
) -> None:
    response = chat(server, "/v1/chat/completions", **parameters)
    code = response.json()["code"]
    check_error(response, 422, code, [named])
    assert code in ("invalid_parameter", "invalid_grammar")


def test_a_hostile_schema_stalls_nobody(server: LiveServer) -> None:
    """Thousands of properties, deep recursion, exponential references: quickly refused or served."""
    doubling = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)}
    hostile: list[Any] = [
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(900)}},
        {"$defs": {**doubling, "d25": {"type": "object"}}, "$ref": "#/$defs/d0"},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "string", "pattern": "^(.*a){30}$"},
        {"type": "string", "pattern": "^(([a-z]+)*[0-9]+)*(foo|bar){1,500}x$"},
        {"type": "integer", "multipleOf": 999983},
        {"type": "array", "items": {"type": "string"}, "minItems": 100_000},
    ]
    for schema in hostile:
        response = chat(server, response_format=schema_format(schema), max_tokens=20)
        assert response.status_code in (200, 422), response.text
    assert httpx2.get(f"{server.url}/health").status_code == 200
