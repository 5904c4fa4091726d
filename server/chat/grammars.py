"""Finds the grammar of a request: a forced call, schema, regex, choice or grammar."""

from __future__ import annotations

import json
import string

import model
from server.chat.tools import ForcedCall
from server.errors import Loc, invalid_parameter
from server.schemas.requests import (
    ChatCompletionRequest,
    JsonSchemaOrText,
    ResponseFormat,
    StructuredOutputs,
)

MARKS = string.punctuation.replace("\\", "")


def grammar(request: ChatCompletionRequest, call: ForcedCall | None) -> model.GrammarSpec | None:
    """The request's grammar, if any. A forced call leaves no text for ``response_format``.

    Args:
        request: the request.
        call: the call that it forces, if any.

    Raises:
        ApiError: the request has two, or combines one with ``ignore_eos``.
    """
    asked = {
        "tool_choice": call.grammar if call else None,
        "response_format": None if call else _of_format(request.response_format),
        "structured_outputs": _of_outputs(request.structured_outputs),
        "guided_json": _of_json(request.guided_json, ("guided_json",)),
        "guided_regex": _of_regex(request.guided_regex, ("guided_regex",)),
        "guided_choice": _of_choices(request.guided_choice, ("guided_choice",)),
        "guided_grammar": _of_grammar(request.guided_grammar, ("guided_grammar",)),
    }
    named = [name for name, spec in asked.items() if spec is not None]
    if not named:
        return None
    if len(named) > 1 or request.ignore_eos:
        other = named[1] if len(named) > 1 else "ignore_eos"
        reason = f"{named[0]} and {other} cannot be combined; remove one"
        raise invalid_parameter(reason, (other,))
    return asked[named[0]]


def _of_format(wanted: ResponseFormat | None) -> model.GrammarSpec | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return model.GrammarSpec("json_schema", '{"type": "object"}', ("response_format",))
    if wanted.json_schema is None:
        raise invalid_parameter(
            "response_format.json_schema is missing; it must contain a name and a schema",
            ("response_format", "json_schema"),
        )
    loc = ("response_format", "json_schema", "schema")
    return model.GrammarSpec("json_schema", json.dumps(wanted.json_schema.json_schema), loc)


def _of_outputs(wanted: StructuredOutputs | None) -> model.GrammarSpec | None:
    if wanted is None:
        return None
    name = "structured_outputs"
    asked = {
        "json": _of_json(wanted.json_schema, (name, "json")),
        "json_object": _of_json({"type": "object"} if wanted.json_object else None, (name,)),
        "regex": _of_regex(wanted.regex, (name, "regex")),
        "choice": _of_choices(wanted.choice, (name, "choice")),
        "grammar": _of_grammar(wanted.grammar, (name, "grammar")),
    }
    given = [spec for spec in asked.values() if spec is not None]
    if len(given) != 1:
        raise invalid_parameter(
            f"structured_outputs has {len(given)} of {', '.join(asked)}; it must have one", (name,)
        )
    return given[0]


def _of_json(schema: JsonSchemaOrText | None, loc: Loc) -> model.GrammarSpec | None:
    if schema is None:
        return None
    source = schema if isinstance(schema, str) else json.dumps(schema)
    return model.GrammarSpec("json_schema", source, loc)


def _of_choices(choices: list[str] | None, loc: Loc) -> model.GrammarSpec | None:
    if choices is None:
        return None
    return model.GrammarSpec("regex", "|".join(map(_escaped, choices)), loc)


def _escaped(text: str) -> str:
    """Escape text for a regular expression. Must be fast, because it holds the GIL."""
    # Only ASCII punctuation has a special meaning, and all of it may be escaped.
    text = text.replace("\\", r"\\")
    for mark in MARKS:
        text = text.replace(mark, f"\\{mark}")
    return text


def _of_regex(regex: str | None, loc: Loc) -> model.GrammarSpec | None:
    return None if regex is None else model.GrammarSpec("regex", regex, loc)


def _of_grammar(source: str | None, loc: Loc) -> model.GrammarSpec | None:
    return None if source is None else model.GrammarSpec("grammar", source, loc)
