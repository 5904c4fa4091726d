"""What a client may get wrong in a request for a response: a 4xx that names the field, soon."""

from __future__ import annotations

import random
from typing import Any

import httpx2
import pytest

from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import AUTHORIZED, check_error, data_url, png

SOON = 20  # seconds for a refusal, on any machine
IMAGE = {"type": "input_image", "image_url": data_url(png(40, 30))}


def said(content: Any, role: str = "user") -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "first"}, {"role": role, "content": content}]}


def tools(*given: Any, **more: Any) -> dict[str, Any]:
    return {"input": "hi", "tools": [*given], **more}


FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
INVALID, REFUSED = "invalid_parameter", "parameter_not_supported"
CONTENT = ["input", 1, "content"]
# name: (JSON body, status, code, location of the field)
BODIES: dict[str, tuple[Any, int, str, list[Any]]] = {
    "not an object": ([1], 422, INVALID, []),
    "no input": ({}, 422, INVALID, ["input"]),
    "input null": ({"input": None}, 422, INVALID, ["input"]),
    "input a number": ({"input": 1}, 422, INVALID, ["input"]),
    "empty input": ({"input": []}, 422, INVALID, ["input"]),
    "item a string": ({"input": ["hi"]}, 422, INVALID, ["input", 0]),
    "unknown item": ({"input": [{"type": "smell"}]}, 422, INVALID, ["input", 0]),
    "item type a list": ({"input": [{"type": []}]}, 422, INVALID, ["input", 0]),
    "unknown role": (said("x", "king"), 422, INVALID, ["input", 1, "role"]),
    "content null": (said(None), 422, INVALID, CONTENT),
    "empty content": (said([]), 422, INVALID, CONTENT),
    "unknown part": (said([{"type": "smell"}]), 422, INVALID, [*CONTENT, 0]),
    "part without text": (said([{"type": "input_text"}]), 422, INVALID, [*CONTENT, 0, "text"]),
    "file": (said([{"type": "input_file"}]), 422, "modality_not_supported", [*CONTENT, 0]),
    "audio": (said([{"type": "input_audio"}]), 422, "modality_not_supported", [*CONTENT, 0]),
    "file id": (
        said([{"type": "input_image", "file_id": "file-1"}]),
        422,
        REFUSED,
        [*CONTENT, 0, "file_id"],
    ),
    "image without a URL": (
        said([{"type": "input_image"}]),
        422,
        INVALID,
        [*CONTENT, 0, "image_url"],
    ),
    "no image": (
        said([{"type": "input_image", "image_url": data_url(b"hello " * 50)}]),
        422,
        "invalid_image",
        [*CONTENT, 0, "image_url"],
    ),
    "remote image": (
        said([{"type": "input_image", "image_url": "https://example.com/a.png"}]),
        422,
        "modality_not_supported",
        [*CONTENT, 0, "image_url"],
    ),
    "two images": (said([IMAGE, IMAGE]), 422, "too_many_images", CONTENT),
    "assistant's image": (said([IMAGE], "assistant"), 422, "modality_not_supported", CONTENT),
    "reasoning": (
        {"input": [{"type": "reasoning", "id": "x"}]},
        422,
        REFUSED,
        ["input", 0, "type"],
    ),
    "function output": (
        {"input": [{"type": "function_call_output", "call_id": "1", "output": 5}]},
        422,
        INVALID,
        ["input", 0, "output"],
    ),
    "unknown reference": (
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        404,
        "item_not_found",
        ["input", 0, "id"],
    ),
    "unknown previous": (
        {"input": "x", "previous_response_id": "resp_1"},
        404,
        "previous_response_not_found",
        ["previous_response_id"],
    ),
    "previous a number": (
        {"input": "x", "previous_response_id": 1},
        422,
        INVALID,
        ["previous_response_id"],
    ),
    "background": ({"input": "x", "background": True}, 422, REFUSED, ["background"]),
    "conversation": ({"input": "x", "conversation": "c"}, 422, REFUSED, ["conversation"]),
    "prompt": ({"input": "x", "prompt": {"id": "p"}}, 422, REFUSED, ["prompt"]),
    "truncation": ({"input": "x", "truncation": "auto"}, 422, REFUSED, ["truncation"]),
    "reasoning effort": (
        {"input": "x", "reasoning": {"effort": "low"}},
        422,
        REFUSED,
        ["reasoning", "effort"],
    ),
    "verbosity": (
        {"input": "x", "text": {"verbosity": "low"}},
        422,
        REFUSED,
        ["text", "verbosity"],
    ),
    "hosted tool": (tools({"type": "web_search"}), 422, REFUSED, ["tools", 0, "type"]),
    "tool without a type": (tools({}), 422, INVALID, ["tools", 0, "type"]),
    "tool without a name": (tools({"type": "function"}), 422, INVALID, ["tools", 0, "name"]),
    "hosted choice": (tools(tool_choice={"type": "mcp"}), 422, INVALID, ["tool_choice"]),
    "unknown include": ({"input": "x", "include": ["all"]}, 422, INVALID, ["include", 0]),
    "schema missing": (
        {"input": "x", "text": {"format": {"type": "json_schema", "name": "n"}}},
        422,
        INVALID,
        ["text", "format", "schema"],
    ),
    "schema of nonsense": (
        {
            "input": "x",
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "cow"}}},
        },
        422,
        "invalid_grammar",
        ["text", "format", "schema"],
    ),
    "metadata of numbers": ({"input": "x", "metadata": {"a": 1}}, 422, INVALID, ["metadata", "a"]),
    "much metadata": (
        {"input": "x", "metadata": {str(i): "" for i in range(17)}},
        422,
        INVALID,
        ["metadata"],
    ),
    "temperature": ({"input": "x", "temperature": "hot"}, 422, INVALID, ["temperature"]),
    "max_output_tokens": (
        {"input": "x", "max_output_tokens": 0},
        422,
        INVALID,
        ["max_output_tokens"],
    ),
    "chat's messages": ({"messages": []}, 422, INVALID, ["messages"]),
    "chat's n": ({"input": "x", "n": 2}, 422, INVALID, ["n"]),
    "chat's logprobs": ({"input": "x", "logprobs": True}, 422, INVALID, ["logprobs"]),
    "chat's functions": ({"input": "x", "functions": [{}]}, 422, REFUSED, ["functions"]),
    "call of a bad name": (
        {
            "input": [
                {"type": "function_call", "call_id": "1", "name": "a b", "arguments": "{}"},
            ]
        },
        422,
        INVALID,
        ["input", 0, "name"],
    ),
    "unknown allowed function": (
        tools(
            FUNCTION,
            tool_choice={
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "g"}],
            },
        ),
        422,
        INVALID,
        ["tool_choice", "tools", 0, "name"],
    ),
    "auto": (tools(FUNCTION), 422, REFUSED, ["tools"]),
    "unknown function": (
        tools(FUNCTION, tool_choice={"type": "function", "name": "g"}),
        422,
        INVALID,
        ["tool_choice", "name"],
    ),
    "function of a bad name": (
        tools({**FUNCTION, "name": "a b"}, tool_choice="required"),
        422,
        INVALID,
        ["tools", 0, "name"],
    ),
    "function of a bad schema": (
        tools({**FUNCTION, "parameters": {"type": "cow"}}, tool_choice="required"),
        422,
        INVALID,
        ["tools", 0, "parameters", "type"],
    ),
    "a thousand functions": (
        tools(*({**FUNCTION, "name": f"f{i}"} for i in range(1000)), tool_choice="required"),
        422,
        INVALID,
        ["tools"],
    ),
    "a choice without tools": (
        {"input": "x", "tool_choice": "required"},
        422,
        INVALID,
        ["tool_choice"],
    ),
    "long prompt": ({"input": "many words " * 20_000}, 400, "context_length_exceeded", ["input"]),
    "many items": ({"input": [{"role": "user", "content": "x"}] * 5000}, 422, INVALID, ["input"]),
    "many parts": (
        said([{"type": "input_text", "text": "x"}] * 300),
        422,
        INVALID,
        CONTENT,
    ),
    "many values": (
        tools({"type": "function", "name": "f", "parameters": {"enum": [0] * 70_000}}),
        422,
        INVALID,
        ["tools"],
    ),
}


def post(server: LiveServer, body: Any) -> httpx2.Response:
    url = f"{server.url}/v1/responses"
    return httpx2.post(url, json=body, headers=AUTHORIZED, timeout=SOON)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_bodies(server: LiveServer, name: str, stream: bool) -> None:
    body, status, code, loc = BODIES[name]
    if stream and isinstance(body, dict):
        body = {**body, "stream": True}
    response = post(server, body)
    message = check_error(response, status, code, loc)["message"]
    assert "messages." not in message
    assert "response_format" not in message


VALUES: list[Any] = [
    *(None, True, 0, -1, 2**70, 0.5, "", "x", "auto", "resp_1", [], {}, [None], [[]], [{}]),
    *({"type": "function"}, {"type": "message"}, {"type": None}, {"id": "x"}, [{"id": "msg_1"}]),
    *({"role": "user", "content": [{}]}, [{"type": "function_call"}], "😀", "\x00"),
]
FIELDS = (
    *(
        "input",
        "instructions",
        "previous_response_id",
        "store",
        "stream",
        "text",
        "include",
        "tools",
    ),
    *("tool_choice", "metadata", "reasoning", "truncation", "max_output_tokens", "stream_options"),
    *(
        "background",
        "conversation",
        "prompt",
        "temperature",
        "top_logprobs",
        "seed",
        "stop",
        "user",
    ),
)


def test_any_mixture_of_values_is_answered_or_refused(server: LiveServer) -> None:
    chance = random.Random(1)
    statuses = set()
    for _ in range(300):
        body: dict[str, Any] = {"input": "hi"}
        for name in chance.sample(FIELDS, chance.randint(1, 3)):
            body[name] = chance.choice(VALUES)
            if chance.random() < 0.2:
                body[name] = {chance.choice(FIELDS): body[name]}
        body.setdefault("max_output_tokens", 2)
        response = post(server, body)
        statuses.add(response.status_code)
        assert response.status_code in (200, 400, 404, 422), (body, response.text)
        if response.status_code != 200:
            assert response.json()["error"]["message"]
    assert {200, 422} <= statuses
