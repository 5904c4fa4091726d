"""Converts a request's grammar to llguidance's format. Runs only in worker processes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Literal

from llguidance import LLMatcher, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

LARGEST_MULTIPLE = 100_000
SEARCH_SECONDS = 0.5  # to find the invalid part of a schema
Kind = Literal["json_schema", "regex", "grammar", "calls"]
Place = tuple[str | int, ...]
SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
SCHEMAS = ("items", "additionalProperties")
# The whitespace that models usually write; fixed, so that keys and punctuation can be forced.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class BrokenGrammarError(ValueError):
    """The grammar is invalid; the message says why."""


def to_llguidance(kind: Kind, source: str) -> str:
    """The grammar in llguidance's format, after a leading space; raises BrokenGrammarError."""
    if kind == "regex":
        regex = regex_to_lark(source, use_ascii="")
        return LLMatcher.grammar_from_lark(f'start: " " answer\nanswer: /{regex}/\n')
    if kind == "grammar":
        try:
            lark = any_to_lark(source)
        except Exception as error:  # its parser raises many kinds
            raise BrokenGrammarError(str(error)) from error
        return LLMatcher.grammar_from_lark(f'start: " " answer\nanswer: %lark {{\n{lark}\n}}\n')
    try:
        schema = json.loads(source)
    except ValueError as error:
        raise BrokenGrammarError(f"it is not JSON: {error}") from error
    _refuse_large_multiples(schema)
    return _of_calls(schema) if kind == "calls" else _of_schema(schema)


def culprit(source: Any, is_broken: Callable[[str], bool]) -> Place:
    """Path of the smallest invalid part of an invalid schema, or of several functions' schemas.

    Args:
        source: the whole schema, or a list of functions.
        is_broken: whether a grammar in llguidance's format fails to compile.
    """
    deadline = time.monotonic() + SEARCH_SECONDS
    if not isinstance(source, list):
        return _culprit(source, is_broken, deadline)
    for number, function in enumerate(source):
        parameters = function["parameters"]
        if time.monotonic() < deadline and is_broken(_of_schema(parameters)):
            return (number, *_culprit(parameters, is_broken, deadline))
    return ()


def _culprit(schema: dict[str, Any], is_broken: Callable[[str], bool], deadline: float) -> Place:
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    path: Place = ()
    part: Any = schema
    while True:
        for step, inner in _parts(part):
            if time.monotonic() > deadline:
                return path
            whole = {**shared, **inner} if isinstance(inner, dict) else inner
            if is_broken(_of_schema(whole)):
                path, part = path + step, inner
                break
        else:
            return path


def _refuse_large_multiples(schema: Any) -> None:
    """Raise BrokenGrammarError if the common multiple of all multipleOf is too large.

    The automaton for a multiple has that many states.
    """
    common, waiting = 1, [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
            multiple = part.get("multipleOf")
            if isinstance(multiple, int | float) and 0 < multiple < LARGEST_MULTIPLE:
                common = math.lcm(common, Fraction(str(multiple)).numerator)
            elif isinstance(multiple, int | float):
                common = LARGEST_MULTIPLE
    if common >= LARGEST_MULTIPLE:
        raise BrokenGrammarError(
            f"the common multiple of all multipleOf must be below {LARGEST_MULTIPLE}"
        )


def _of_schema(schema: Any) -> str:
    return LLMatcher.grammar_from_lark(f'start: " " answer\nanswer: {_json_rule(schema)}\n')


def _of_calls(functions: list[dict[str, Any]]) -> str:
    """A call of one of the functions: ``{"name": ..., "arguments": {...}}``.

    Each schema is a rule of its own, so that its references stay within it.
    """
    names = " | ".join(f"call{number}" for number in range(len(functions)))
    rules = [f'start: " " answer\nanswer: {names}']
    for number, function in enumerate(functions):
        head = f'{{"name": {json.dumps(function["name"])}, "arguments": '
        rules.append(f'call{number}: {json.dumps(head)} arguments{number} "}}"')
        rules.append(f"arguments{number}: {_json_rule(function['parameters'])}")
    return LLMatcher.grammar_from_lark("\n".join([*rules, ""]))


def _json_rule(schema: Any) -> str:
    styled = {**schema, "x-guidance": JSON_STYLE} if isinstance(schema, dict) else schema
    return f"%json {json.dumps(styled)}"


def _parts(schema: Any) -> Iterator[tuple[Place, Any]]:
    """The direct subschemas of a schema, with their paths."""
    if not isinstance(schema, dict):
        return
    for key in SCHEMAS_BY_NAME:
        named = schema.get(key)
        if isinstance(named, dict):
            yield from (((key, name), inner) for name, inner in named.items())
    for key in LISTS_OF_SCHEMAS:
        listed = schema.get(key)
        if isinstance(listed, list):
            yield from (((key, i), inner) for i, inner in enumerate(listed))
    for key in SCHEMAS:
        if isinstance(schema.get(key), dict):
            yield (key,), schema[key]
