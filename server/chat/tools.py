"""Forced calls: which functions the answer must call one of, for the grammar and for the prompt.

Independent of the API's dialect. The model was not trained to call functions, so it never decides whether
to; but where a call is required, a grammar makes its answer one:

    {"name": "get_weather", "arguments": {"city": "Paris"}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import model
from server.errors import Loc, invalid_parameter, not_supported, short_name
from server.schemas.tools import AllowedToolsChoice, Tool, ToolChoice, ToolReference

MOST_FUNCTIONS = 128
LARGEST_DESCRIPTION = 200_000  # characters of all functions in the prompt
REMEDY = (
    "Phi-3-vision was not trained to choose between a call and text; set tool_choice to 'required' or "
    "to a function to force a call, or to 'none' for text"
)
INSTRUCTION = (
    "Call one of these functions. Answer only with the call, as JSON: "
    '{"name": the name of the function, "arguments": an object that matches its parameters}'
)
# Keywords that may declare properties beside ``properties``.
OTHER_PROPERTIES = (
    *("additionalProperties", "patternProperties", "unevaluatedProperties", "$ref"),
    *("allOf", "anyOf", "oneOf", "if", "dependentSchemas"),
)


@dataclass(frozen=True)
class Function:
    """A function that may be called.

    Attributes:
        name: of the characters that ``server.schemas.tools.FunctionName`` allows.
        description: tells the model what it does.
        parameters: JSON schema of its arguments; None if it has none.
        loc: path of the schema in the request, for errors.
    """

    name: str
    description: str
    parameters: dict[str, Any] | None
    loc: Loc


@dataclass(frozen=True)
class ForcedCall:
    """A call that the answer must be; made by ``force``.

    Attributes:
        names: of the functions, one of which is called.
        grammar: makes the answer a call.
        prompt: describes the functions to the model.
        finish_reason: of a complete call.
    """

    names: tuple[str, ...]
    grammar: model.GrammarSpec
    prompt: str
    finish_reason: Literal["stop", "tool_calls"]


def force(functions: Sequence[Function], is_named: bool = False) -> ForcedCall:
    """Force a call of one of the functions.

    Args:
        functions: at least one.
        is_named: whether the request named the function; OpenAI's finish reason is then ``stop``.

    Raises:
        ApiError: there are too many functions, two have the same name, or their schemas are too large or
            not objects.
    """
    names = _check_names(functions)
    schemas = [_of_objects(function) for function in functions]
    described = [
        _dumped({"name": each.name, "description": each.description, "parameters": schema})
        for each, schema in zip(functions, schemas, strict=True)
    ]
    size = sum(map(len, described))
    if size > LARGEST_DESCRIPTION:
        raise invalid_parameter(
            f"the functions in tools have {size} characters; the limit is {LARGEST_DESCRIPTION}; shorten "
            "their descriptions and parameters",
            ("tools",),
            size,
        )
    calls = [
        {"name": name, "parameters": schema} for name, schema in zip(names, schemas, strict=True)
    ]
    places = tuple(function.loc for function in functions)
    grammar = model.GrammarSpec("calls", _dumped(calls), ("tools",), places)
    prompt = "\n".join([INSTRUCTION, *described])
    return ForcedCall(names, grammar, prompt, "stop" if is_named else "tool_calls")


def _check_names(functions: Sequence[Function]) -> tuple[str, ...]:
    """The functions' names; raises an ApiError if they are too many or not unique."""
    if len(functions) > MOST_FUNCTIONS:
        raise invalid_parameter(
            f"tools has {len(functions)} functions to choose from; the limit is {MOST_FUNCTIONS}; "
            "remove some, or name fewer in tool_choice",
            ("tools",),
            len(functions),
        )
    names = tuple(function.name for function in functions)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise invalid_parameter(
            f"tools has two functions named {twice!r}; rename one", ("tools",), twice
        )
    return names


def _of_objects(function: Function) -> dict[str, Any]:
    """The function's schema, restricted to objects of the properties that it lists.

    A schema without ``additionalProperties`` allows any, but no function expects those.
    """
    schema = function.parameters or {"properties": {}}
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        loc = (*function.loc, "type")
        raise invalid_parameter(
            f"{'.'.join(map(str, loc))} must be 'object', since arguments are an object", loc, kind
        )
    schema = {**schema, "type": "object"}
    listed, required = schema.get("properties"), schema.get("required", [])
    lists_all = (
        isinstance(listed, dict)
        and isinstance(required, list)
        and set(map(str, required)) <= set(listed)
    )
    if lists_all and not any(keyword in schema for keyword in OTHER_PROPERTIES):
        schema["additionalProperties"] = False
    return schema


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def describe_functions(messages: list[model.Message], call: ForcedCall) -> list[model.Message]:
    """Put the functions' description in front of the first user message, after system messages."""
    for position, message in enumerate(messages):
        if message.role == "user":
            first = message.prefixed(f"{call.prompt}\n")
            return [*messages[:position], first, *messages[position + 1 :]]
    return [*messages, model.Message("system", call.prompt)]


def forced_call(tools: Sequence[Tool], choice: ToolChoice | None) -> ForcedCall | None:
    """The call that a chat request forces; None if it has no tools, or chooses ``none``.

    Raises:
        ApiError: the choice is ``auto``, names a function that does not exist, or see ``force``.
    """
    if choice == "none" or (not tools and choice in (None, "auto")):
        return None
    if choice is None:
        raise not_supported(
            f"tools is not supported with tool_choice 'auto', which is the default: {REMEDY}",
            ("tools",),
            len(tools),
        )
    if choice == "auto":
        raise not_supported(
            f"tool_choice 'auto' is not supported: {REMEDY}", ("tool_choice",), "auto"
        )
    if not tools:
        raise invalid_parameter(
            "tool_choice requires tools; send the functions in tools", ("tool_choice",)
        )
    functions = [
        Function(
            tool.function.name,
            tool.function.description,
            tool.function.parameters,
            ("tools", position, "function", "parameters"),
        )
        for position, tool in enumerate(tools)
    ]
    by_name = {function.name: function for function in functions}
    if isinstance(choice, AllowedToolsChoice):
        return _force_allowed(by_name, choice)
    if isinstance(choice, ToolReference):
        loc = ("tool_choice", "function", "name")
        return force([_find(by_name, choice.function.name, loc)], is_named=True)
    return force(functions)


def _force_allowed(functions: Mapping[str, Function], choice: AllowedToolsChoice) -> ForcedCall:
    allowed = choice.allowed_tools
    loc: Loc = ("tool_choice", "allowed_tools")
    if allowed.mode == "auto":
        raise not_supported(
            f"tool_choice.allowed_tools.mode 'auto' is not supported: {REMEDY}",
            (*loc, "mode"),
            "auto",
        )
    wanted = {
        tool.function.name: (*loc, "tools", position, "function", "name")
        for position, tool in enumerate(allowed.tools)
    }
    return force([_find(functions, name, where) for name, where in wanted.items()])


def _find(functions: Mapping[str, Function], name: str, loc: Loc) -> Function:
    if name in functions:
        return functions[name]
    where = ".".join(map(str, loc))
    raise invalid_parameter(f"{where} is {short_name(name)!r}, which is not in tools", loc, name)
