"""Validates requests for responses and converts them to bodies of chat completions.

What both APIs have is checked by ``server.chat.parse``; here is only what chat completions do not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

import model
from server.chat.parameters import unknown_fields
from server.chat.parse import ExtraPolicy, ParsedChat, bounded, parse_chat, validated
from server.errors import Loc, dotted, invalid_parameter, not_supported, short_name
from server.responses.field_names import FieldNames
from server.responses.items import Item, to_messages
from server.schemas.responses_object import ResponseObject, TextConfig
from server.schemas.responses_request import (
    LOGPROBS,
    SHARED,
    AllowedTools,
    FunctionTool,
    NamedTool,
    ResponsesRequest,
    TextFormat,
)

FIELDS = set(ResponsesRequest.model_fields)
# Parameters of chat completions that the Responses API has in another form, and values that are harmless.
OTHER_FORMS = {
    "messages": "use input",
    "max_tokens": "use max_output_tokens",
    "max_completion_tokens": "use max_output_tokens",
    "response_format": "use text.format",
    "logprobs": f"use include with {LOGPROBS}",
    "reasoning_effort": "use reasoning.effort",
    "verbosity": "use text.verbosity",
    "n": "send the request several times",
}
HARMLESS: dict[str, Any] = {
    "logprobs": False,
    "n": 1,
    "reasoning_effort": "none",
    "verbosity": "medium",
}
# Unsupported parameters: values that are harmless, and why others are refused.
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "background": ((False,), "send the request without it and wait, or use stream"),
    "context_management": ((None, []), "send a shorter conversation"),
    "conversation": ((None,), "use previous_response_id, or send the whole conversation as input"),
    "moderation": ((None,), "this server has no moderation"),
    "prompt": ((None,), "this server stores no prompts; send the text as instructions and input"),
    "truncation": (("disabled",), "remove the oldest items yourself"),
}


def parse_request(
    body: object, extra_policy: ExtraPolicy, max_messages: int
) -> tuple[ResponsesRequest, dict[str, Any]]:
    """Validate a parsed JSON body.

    Args:
        body: the JSON value.
        extra_policy: how to handle parameters that OpenAI does not define.
        max_messages: maximum number of input items.

    Returns:
        the request, and the parameters that only chat completions may know.

    Raises:
        ApiError: 422.
    """
    body = bounded(body, max_messages, "input")
    given = {name: value for name, value in body.items() if value is not None}
    for name, remedy in OTHER_FORMS.items():
        if name in given and given[name] != HARMLESS.get(name):
            reason = f"{name} is a parameter of chat completions, not of responses; {remedy}"
            raise invalid_parameter(reason, (name,), given[name])
    own = {name: value for name, value in given.items() if name in FIELDS}
    request = validated(ResponsesRequest, own, extra_policy == "ignore")
    _refuse_unsupported(request)
    if not request.model_fields_set & {"input", "previous_response_id"}:
        raise invalid_parameter("input is missing; send a text, or a list of items", ("input",))
    return request, {name: value for name, value in given.items() if name not in FIELDS}


def _refuse_unsupported(request: ResponsesRequest) -> None:
    for name, (harmless, why) in UNSUPPORTED.items():
        value = getattr(request, name)
        if value not in harmless:
            raise not_supported(f"{name} is not supported: {why}", (name,), value)
    for position, tool in enumerate(request.tools):
        if not isinstance(tool, FunctionTool):
            raise not_supported(
                f"tools.{position} has the type {short_name(tool.type)!r}, but this server runs no tools; "
                "declare a function and run it yourself",
                ("tools", position, "type"),
                tool.type,
            )


def to_chat(
    request: ResponsesRequest,
    others: Mapping[str, Any],
    earlier: Sequence[Item],
    items: Sequence[Item],
    extra_policy: ExtraPolicy,
    max_messages: int,
) -> tuple[ParsedChat, FieldNames]:
    """Convert a request to a validated chat completion.

    Args:
        request: the request.
        others: parameters that only chat completions may know.
        earlier: the items of the conversation that it continues.
        items: its own items.
        extra_policy: how to handle parameters that OpenAI does not define.
        max_messages: maximum number of messages.

    Returns:
        the chat completion, and what its fields are called in the request.

    Raises:
        ApiError: see ``parse_chat``; it names the fields of the request.
    """
    one = isinstance(request.input, str)
    own: list[tuple[Item, Loc]] = [
        (item, ("input",) if one else ("input", position)) for position, item in enumerate(items)
    ]
    messages, places = to_messages(
        [*((item, ("previous_response_id",)) for item in earlier), *own],
    )
    if request.instructions:
        messages.insert(0, {"role": "system", "content": request.instructions})
        places.insert(0, ("instructions",))
    names = FieldNames(places)
    body = {**others, **chat_parameters(request), "messages": messages}
    with names.in_errors():
        chat = parse_chat(body, extra_policy, max_messages)
    of_chat = (dotted(names.path((name,))) for name in chat.ignored)
    ignored = dict.fromkeys([*of_chat, *ignored_parameters(request)])
    return chat._replace(ignored=tuple(ignored)), names


def chat_parameters(request: ResponsesRequest) -> dict[str, Any]:
    """The parameters of the chat completion; those that the request lacks stay out."""
    found = {name: getattr(request, name) for name in SHARED & request.model_fields_set}
    found["max_completion_tokens"] = request.max_output_tokens
    if request.stream_options is not None:
        found["stream_options"] = request.stream_options.model_dump(include={"include_obfuscation"})
    if LOGPROBS in request.include:
        found |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.text is not None:
        found["response_format"] = _response_format(request.text.format)
        if request.text.verbosity != "medium":
            found["verbosity"] = request.text.verbosity
    if request.reasoning is not None:
        found["reasoning_effort"] = request.reasoning.effort
    if request.tools:
        found["tools"] = [_tool(tool) for tool in request.tools if isinstance(tool, FunctionTool)]
    if request.tool_choice is not None and (request.tools or request.tool_choice != "auto"):
        found["tool_choice"] = _tool_choice(request.tool_choice)
    return found


def ignored_parameters(request: ResponsesRequest) -> Iterator[str]:
    """Names of what was sent but is ignored, besides what chat completions ignore."""
    if request.max_tool_calls is not None:
        yield "max_tool_calls"
    if request.top_logprobs and LOGPROBS not in request.include:
        yield "top_logprobs"
    for name, value in request.reasoning or ():
        if name != "effort" and value is not None:
            yield f"reasoning.{name}"
    yield from unknown_fields(request)


def _response_format(wanted: TextFormat | None) -> dict[str, Any] | None:
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    if wanted.json_schema is None:
        raise invalid_parameter(
            "text.format.schema is missing; it must be a JSON schema", ("text", "format", "schema")
        )
    described = wanted.model_dump(
        include={"name", "description", "json_schema", "strict"}, exclude_none=True, by_alias=True
    )
    return {"type": "json_schema", "json_schema": described}


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {
        "type": "function",
        "function": tool.model_dump(
            include={"name", "description", "parameters", "strict"}, exclude_none=True
        ),
    }


def _tool_choice(choice: str | NamedTool | AllowedTools) -> str | dict[str, Any]:
    match choice:
        case NamedTool(name=name):
            return {"type": "function", "function": {"name": name}}
        case AllowedTools(mode=mode, tools=tools):
            named = [_tool_choice(tool) for tool in tools]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
        case _:
            return choice


def echoed(
    request: ResponsesRequest,
    params: model.SamplingParams,
    response: str,
    model_name: str,
    stored: bool,
) -> ResponseObject:
    """The response before it has any output, which repeats the request."""
    text = request.text.format if request.text is not None else None
    described = (text or TextFormat(type="text")).model_dump(exclude_none=True, by_alias=True)
    choice = request.tool_choice
    return ResponseObject(
        id=response,
        created_at=0,
        model=model_name,
        previous_response_id=request.previous_response_id,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        temperature=params.temperature,
        top_p=params.top_p,
        top_logprobs=request.top_logprobs,
        text=TextConfig(format=described),
        tools=[tool.model_dump() for tool in request.tools],
        tool_choice=choice.model_dump() if isinstance(choice, BaseModel) else choice or "auto",
        parallel_tool_calls=request.parallel_tool_calls,
        store=stored,
        metadata=request.metadata,
        prompt_cache_key=request.prompt_cache_key,
        safety_identifier=request.safety_identifier,
        user=request.user,
    )
