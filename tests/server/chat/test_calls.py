"""Forced calls: read from the model's text in any pieces, and what a request may force."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import model
from server.chat.calls import CallReader
from server.chat.tools import Function, describe_functions, force
from server.errors import ApiError

NAMES = ("f", "ff", "get.weather")
LOC = ("tools", 0, "function", "parameters")


def function(name: str = "f", parameters: dict[str, Any] | None = None) -> Function:
    return Function(name, "", parameters, LOC)


def schema_of(parameters: dict[str, Any] | None) -> Any:
    call = force([function(parameters=parameters)])
    return json.loads(call.grammar.source)[0]["parameters"]


ARGUMENTS = st.dictionaries(
    st.text(),
    st.recursive(
        st.none() | st.integers() | st.text('{}"\\\n a') | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text('{}"\\'), inner),
    ),
)


@given(st.sampled_from(NAMES), ARGUMENTS, st.booleans(), st.data())
def test_pieces_add_up(name: str, arguments: Any, ascii_only: bool, data: st.DataObject) -> None:
    expected = json.dumps(arguments, ensure_ascii=ascii_only)
    text = f'{{"name": "{name}", "arguments": {expected}}}'
    cuts = data.draw(st.sets(st.integers(0, len(text))))
    bounds = [0, *sorted(cuts), len(text)]
    reader = CallReader(force([function(name) for name in NAMES]))
    read, seen = "", ""
    for start, end in pairwise(bounds):
        read += reader.add(text[start:end])
        seen += text[start:end]
        assert (reader.name is None) == (f'"{name}", "arguments": ' not in seen)
        assert reader.is_complete == (len(seen) >= len(text) - 1)
    assert (read, reader.name) == (expected, name)


def test_a_single_function_is_known_before_its_name() -> None:
    reader = CallReader(force([function("only")]))
    assert reader.add('{"na') == ""
    assert (reader.name, reader.is_complete) == ("only", False)
    assert reader.id != CallReader(force([function("only")])).id


def test_finish_reasons_are_openais() -> None:
    assert force([function()]).finish_reason == "tool_calls"
    assert force([function()], is_named=True).finish_reason == "stop"


NONE = {"properties": {}, "type": "object", "additionalProperties": False}
LISTED = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (None, NONE),
        ({}, NONE),
        (LISTED, {**LISTED, "additionalProperties": False}),
        ({**LISTED, "type": ["object", "null"]}, {**LISTED, "additionalProperties": False}),
        ({**LISTED, "additionalProperties": True}, {**LISTED, "additionalProperties": True}),
        ({**LISTED, "required": ["b"]}, {**LISTED, "required": ["b"]}),
        ({"type": "object"}, {"type": "object"}),
        ({"$ref": "#/$defs/x", "$defs": {}}, {"$ref": "#/$defs/x", "$defs": {}, "type": "object"}),
    ],
)
def test_arguments_have_the_listed_properties(parameters: Any, expected: Any) -> None:
    assert schema_of(parameters) == expected


@pytest.mark.parametrize(
    ("functions", "loc", "words"),
    [
        ([function(str(i)) for i in range(129)], ("tools",), "129 functions"),
        ([function("a"), function("b"), function("a")], ("tools",), "named 'a'"),
        ([function(parameters={"type": "string"})], (*LOC, "type"), "'object'"),
        ([function(parameters={"description": "x" * 200_000})], ("tools",), "limit is 200000"),
    ],
)
def test_what_cannot_be_forced(functions: list[Function], loc: Any, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        force(functions)
    assert (caught.value.status, caught.value.loc) == (422, loc)


def test_functions_are_described_once_before_the_first_user_message() -> None:
    call = force([Function("look", "Looks around.", LISTED, LOC), function("wait")])
    assert call.prompt.count("Looks around.") == 1
    assert '"name": "wait"' in call.prompt
    system, user = model.Message("system", "Be brief."), model.Message("user", "hello")
    assert describe_functions([system, user, user], call) == [
        system,
        model.Message("user", f"{call.prompt}\nhello"),
        user,
    ]
    assert describe_functions([system], call) == [system, model.Message("system", call.prompt)]
