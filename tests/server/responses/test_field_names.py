"""Errors name the fields that the client sent."""

from __future__ import annotations

import pytest

import model
from server.errors import ApiError, Loc
from server.images.fetching import FetchError
from server.responses.field_names import FieldNames

NAMES = FieldNames(
    [
        ("instructions",),
        ("previous_response_id",),
        ("input", 0, "content"),
        ("input", 1, "output"),
        ("input", 2),
    ]
)


@pytest.mark.parametrize(
    ("chat", "own"),
    [
        ("messages.0.content", "instructions"),
        ("messages.1.content.0.image_url.url", "previous_response_id"),
        ("messages.2.content", "input.0.content"),
        ("messages.2.content.3.image_url.url", "input.0.content.3.image_url"),
        ("messages.2.role", "input.0"),
        ("messages.3.content.1", "input.1.output.1"),
        ("messages.3.role", "input.1"),
        ("messages.4.tool_calls.0.function", "input.2"),
        ("max_tokens", "max_output_tokens"),
        ("max_completion_tokens", "max_output_tokens"),
        ("response_format.json_schema.schema.properties.a", "text.format.schema.properties.a"),
        ("response_format", "text.format"),
        ("tools.3.function.parameters.type", "tools.3.parameters.type"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("tool_choice.allowed_tools.tools.1.function.name", "tool_choice.tools.1.name"),
        ("reasoning_effort", "reasoning.effort"),
        ("verbosity", "text.verbosity"),
        ("temperature", "temperature"),
    ],
)
def test_paths_and_sentences(chat: str, own: str) -> None:
    loc: Loc = tuple(int(step) if step.isdecimal() else step for step in chat.split("."))
    with pytest.raises(ApiError) as refused, NAMES.in_errors():
        raise ApiError(422, "code", f"{chat} is wrong", loc, 5)
    error = refused.value
    assert (error.status, error.code, ".".join(map(str, error.loc))) == (422, "code", own)
    assert error.message == error.problems[0].message == f"{own} is wrong"
    assert (error.problems[0].loc, error.problems[0].value) == (error.loc, 5)
    with pytest.raises(FetchError) as failed, NAMES.in_errors():
        raise FetchError(f"{chat} is wrong", loc)
    assert (failed.value.message, failed.value.loc) == (f"{own} is wrong", error.loc)


def test_messages_by_number_and_other_errors() -> None:
    assert NAMES.path(("messages",)) == ("input",)
    with pytest.raises(model.ModalityError, match=r"^input\.0 has 2 images"), NAMES.in_errors():
        raise model.ModalityError("message 2 has 2 images", ("messages", 2, "content"))
    with pytest.raises(model.EngineDeadError), NAMES.in_errors():
        raise model.EngineDeadError
