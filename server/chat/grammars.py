"""Finds the grammar of a request: a schema, regex, choice or grammar."""

from __future__ import annotations

import json
import string

import model
from server.errors import invalid_parameter
from server.schemas.requests import ChatCompletionRequest, ResponseFormat

MARKS = string.punctuation.replace("\\", "")


def grammar(request: ChatCompletionRequest) -> model.GrammarSpec | None:
    """The request's grammar, if any.

    Raises:
        ApiError: the request has two, or combines one with ``ignore_eos``.
    """
    asked = {
        "response_format": _of_format(request.response_format),
        "guided_regex": _of_regex(request.guided_regex),
        "guided_choice": _of_choices(request.guided_choice),
        "guided_grammar": _of_grammar(request.guided_grammar),
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


def _of_choices(choices: list[str] | None) -> model.GrammarSpec | None:
    if choices is None:
        return None
    return model.GrammarSpec("regex", "|".join(map(_escaped, choices)), ("guided_choice",))


def _escaped(text: str) -> str:
    """Escape text for a regular expression. Must be fast, because it holds the GIL."""
    # Only ASCII punctuation has a special meaning, and all of it may be escaped.
    text = text.replace("\\", r"\\")
    for mark in MARKS:
        text = text.replace(mark, f"\\{mark}")
    return text


def _of_regex(regex: str | None) -> model.GrammarSpec | None:
    return None if regex is None else model.GrammarSpec("regex", regex, ("guided_regex",))


def _of_grammar(source: str | None) -> model.GrammarSpec | None:
    return None if source is None else model.GrammarSpec("grammar", source, ("guided_grammar",))
