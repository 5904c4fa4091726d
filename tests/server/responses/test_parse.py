"""A request for a response becomes the chat completion that a client would have sent."""

from __future__ import annotations

from typing import Any

import pytest

from server.chat.parse import ExtraPolicy, ParsedChat, parse_chat
from server.errors import ApiError
from server.responses.ids import response_id
from server.responses.items import Item, normalized, to_messages
from server.responses.parse import chat_parameters, echoed, parse_request, to_chat
from server.schemas.responses_request import ResponsesRequest

ID = response_id("0" * 32, "")
URL = "data:image/png;base64,AAAA"


def parsed(**body: Any) -> tuple[ResponsesRequest, dict[str, Any]]:
    return parse_request({"input": "hello", **body}, "ignore", 100)


def messages(given: Any, **body: Any) -> list[dict[str, Any]]:
    request, _ = parsed(input=given, **body)
    items = normalized(request.input, ID, {})
    return to_messages([(item, ("input", i)) for i, item in enumerate(items)])[0]


def text(content: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("hi", [{"role": "user", "content": text("hi")}]),
        ([{"role": "system", "content": "hi"}], [{"role": "system", "content": text("hi")}]),
        (
            [
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "hi"}],
                }
            ],
            [{"role": "user", "content": text("hi")}],
        ),
        (
            [
                {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "status": "completed",
                    "content": [
                        {"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
                        {"type": "refusal", "refusal": "no"},
                    ],
                    "phase": None,
                }
            ],
            [{"role": "assistant", "content": [*text("a"), *text("no")]}],
        ),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "input_image", "image_url": URL, "detail": "low"}],
                }
            ],
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": URL, "detail": "low"}}],
                }
            ],
        ),
        (
            [
                {
                    "type": "function_call",
                    "call_id": "1",
                    "name": "f",
                    "arguments": "{}",
                    "id": "x",
                },
                {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "one"},
                {
                    "type": "function_call_output",
                    "call_id": "2",
                    "output": [{"type": "input_text", "text": "two"}],
                },
            ],
            [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": call,
                            "type": "function",
                            "function": {"name": name, "arguments": "{}"},
                        }
                        for call, name in (("1", "f"), ("2", "g"))
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "one"},
                {"role": "tool", "tool_call_id": "2", "content": text("two")},
            ],
        ),
    ],
)
def test_items_become_messages(given: Any, wanted: list[dict[str, Any]]) -> None:
    assert messages(given) == wanted


def test_original_detail_is_high() -> None:
    image = {"type": "input_image", "image_url": URL, "detail": "original"}
    (message,) = messages([{"role": "user", "content": [image]}])
    assert message["content"][0]["image_url"]["detail"] == "high"


FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
CHAT_FUNCTION = {"name": "f", "parameters": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {}),
        (
            {"temperature": 0, "top_p": "0.5", "seed": 7},
            {"temperature": 0, "top_p": 0.5, "seed": 7},
        ),
        ({"max_output_tokens": 5}, {"max_completion_tokens": 5}),
        ({"text": {"format": {"type": "text"}}}, {"response_format": {"type": "text"}}),
        (
            {"text": {"format": {"type": "json_object"}}},
            {"response_format": {"type": "json_object"}},
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"a": 1}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"a": 1}},
                }
            },
        ),
        ({"text": {"verbosity": "medium"}}, {}),
        ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
        ({"top_logprobs": 3}, {}),
        (
            {"top_logprobs": 3, "include": ["message.output_text.logprobs"]},
            {"logprobs": True, "top_logprobs": 3},
        ),
        ({"include": ["reasoning.encrypted_content"], "tools": [], "reasoning": None}, {}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"tool_choice": "auto"}, {}),
        ({"tool_choice": "none"}, {"tool_choice": "none"}),
        (
            {"tools": [FUNCTION], "tool_choice": "required", "parallel_tool_calls": False},
            {
                "tools": [{"type": "function", "function": CHAT_FUNCTION}],
                "tool_choice": "required",
                "parallel_tool_calls": False,
            },
        ),
        (
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "f"}},
            {
                "tools": [{"type": "function", "function": CHAT_FUNCTION}],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            },
        ),
        (
            {
                "tools": [FUNCTION],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "f"}],
                },
            },
            {
                "tools": [{"type": "function", "function": CHAT_FUNCTION}],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "required",
                        "tools": [{"type": "function", "function": {"name": "f"}}],
                    },
                },
            },
        ),
        (
            {
                "store": False,
                "metadata": {"a": "b"},
                "user": "me",
                "service_tier": "flex",
                "max_tool_calls": 3,
                "prompt_cache_key": "k",
                "safety_identifier": "s",
                "prompt_cache_retention": "24h",
                "background": False,
                "truncation": "disabled",
            },
            {  # which chat names as ignored
                "user": "me",
                "service_tier": "flex",
                "prompt_cache_key": "k",
                "safety_identifier": "s",
                "prompt_cache_retention": "24h",
            },
        ),
    ],
)
def test_parameters_become_those_of_chat(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    request, others = parsed(**given)
    found = {name: value for name, value in chat_parameters(request).items() if value is not None}
    assert found == wanted
    assert others == {}


def test_the_chat_completion_is_the_same() -> None:
    body = {"temperature": 0.5, "seed": 3, "top_k": 4, "stop": ["x"], "stream": True}
    request, others = parsed(instructions="be kind", max_output_tokens=9, **body)
    earlier: list[Item] = normalized("before", ID, {})
    items = normalized(request.input, ID, {})
    chat, names = to_chat(request, others, earlier, items, "ignore", 100)
    said = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": text("before")},
        {"role": "user", "content": text("hello")},
    ]
    same = {"messages": said, "max_completion_tokens": 9, **body}
    assert chat == parse_chat(same, "ignore", 100)
    assert [names.path(("messages", i, "content")) for i in range(3)] == [
        ("instructions",),
        ("previous_response_id",),
        ("input",),
    ]
    with pytest.raises(ApiError, match="limit is 2") as long:
        to_chat(request, others, earlier, items, "ignore", 2)
    assert long.value.loc == ("input",)


def test_what_only_chat_knows_is_its_to_judge() -> None:
    request, others = parsed(colour=1)
    assert others == {"colour": 1}
    items = normalized("hi", ID, {})
    chat, _ = to_chat(request, others, [], items, "ignore", 100)
    assert chat.ignored == ("colour",)
    with pytest.raises(ApiError) as refused:
        to_chat(request, others, [], items, "error", 100)
    assert (refused.value.code, refused.value.loc) == ("extra_forbidden", ("colour",))


IMAGE = {"type": "input_image", "image_url": URL, "tint": 1}
# A part of a request, and what of it is named as ignored.
NO_EFFECT: list[tuple[dict[str, Any], list[str]]] = [
    ({"text": {"colour": 1}}, ["text.colour"]),
    ({"text": {"format": {"type": "text", "colour": 1}}}, ["text.format.colour"]),
    ({"reasoning": {"summary": "auto", "colour": 1}}, ["reasoning.summary", "reasoning.colour"]),
    ({"stream_options": {"include_usage": True}}, ["stream_options.include_usage"]),
    ({"max_tool_calls": 3, "top_logprobs": 2}, ["max_tool_calls", "top_logprobs"]),
    ({"top_logprobs": 2, "include": ["message.output_text.logprobs"]}, []),
    ({"top_logprobs": 0, "n": 1, "logprobs": False, "functions": [], "modalities": ["text"]}, []),
    (
        {
            "tools": [{**FUNCTION, "defer_loading": True}],
            "tool_choice": {"type": "function", "name": "f", "colour": 1},
        },
        ["tools.defer_loading", "tool_choice.colour"],
    ),
    ({"input": [{"role": "user", "content": "a", "colour": 1}]}, ["input.colour"]),
    ({"input": [{"role": "user", "content": [IMAGE]}]}, ["input.content.tint"]),
    (
        {"input": [{"type": "function_call_output", "call_id": "1", "output": [IMAGE]}]},
        ["input.output.tint"],
    ),
    ({"mm_processor_kwargs": {"colour": 1}}, ["mm_processor_kwargs.colour"]),
    ({"verbosity": "medium", "reasoning_effort": "none"}, []),
    (
        {
            "tools": [FUNCTION],
            "tool_choice": "required",
            "text": {"format": {"type": "json_object"}},
        },
        ["text.format"],
    ),
    (
        {"tools": [FUNCTION], "tool_choice": "required", "text": {"format": {"type": "text"}}},
        [],
    ),
]
OUTPUT_ITEMS: list[dict[str, Any]] = [
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "a", "annotations": [1], "logprobs": [1]}],
        "phase": "final_answer",
    },
    {
        "id": "fc_1",
        "type": "function_call",
        "call_id": "1",
        "name": "f",
        "arguments": "{}",
        "status": "completed",
    },
]


def chat_of(policy: ExtraPolicy, **body: Any) -> ParsedChat:
    request, others = parse_request({"input": "hello", **body}, policy, 100)
    items = normalized(request.input, ID, {})
    return to_chat(request, others, [], items, policy, 100)[0]


@pytest.mark.parametrize(("given", "named"), NO_EFFECT)
def test_what_has_no_effect_is_named(given: dict[str, Any], named: list[str]) -> None:
    assert list(chat_of("ignore", **given).ignored) == named


@pytest.mark.parametrize("policy", ["ignore", "error", "drop", "pass-through"])
def test_output_items_may_be_sent_back(policy: ExtraPolicy) -> None:
    assert chat_of(policy, input=OUTPUT_ITEMS).ignored == ()


@pytest.mark.parametrize("policy", ["error", "pass-through"])
@pytest.mark.parametrize(
    "given",
    [
        {"text": {"colour": 1}},
        {"tools": [{**FUNCTION, "colour": 1}], "tool_choice": "none"},
        {"input": [{"role": "user", "content": "a", "colour": 1}]},
        {"input": [{"role": "user", "content": [IMAGE]}]},
    ],
)
def test_strictness_holds_inside_others(policy: ExtraPolicy, given: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        chat_of(policy, **given)
    assert refused.value.code == "extra_forbidden"
    assert refused.value.loc[-1] in ("colour", "tint")


def test_a_continued_conversation_needs_no_input() -> None:
    request, _ = parse_request({"previous_response_id": "resp_1"}, "ignore", 100)
    assert request.input == []


def test_the_response_repeats_the_request() -> None:
    request, _ = parsed(
        instructions="i", metadata={"a": "b"}, tools=[FUNCTION], tool_choice="required", top_p=0.5
    )
    params = parse_chat({"messages": [{"role": "user", "content": "x"}]}, "ignore", 9).params
    response = echoed(request, params, ID, "phi3v", True).model_dump()
    assert response["tools"] == [{**FUNCTION, "description": None}]
    assert (response["tool_choice"], response["metadata"]) == ("required", {"a": "b"})
    assert (response["instructions"], response["store"], response["output"]) == ("i", True, [])
    assert response["text"] == {"format": {"type": "text"}, "verbosity": "medium"}
