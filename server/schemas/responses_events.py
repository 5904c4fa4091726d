"""Events of a streamed response."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, RootModel

from server.schemas.responses import TokenLogprob
from server.schemas.responses_object import OutputItem, ResponseObject, TextContent

EventType = Literal[
    "response.created",
    "response.in_progress",
    "response.completed",
    "response.incomplete",
    "response.failed",
]


class ResponseEvent(BaseModel):
    """The response as it is at its beginning or its end."""

    type: EventType
    sequence_number: int
    response: ResponseObject


class ItemEvent(BaseModel):
    """An output item begins or ends."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    output_index: int
    item: OutputItem


class PartEvent(BaseModel):
    """The text of a message begins or ends."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int = 0
    part: TextContent


class TextDeltaEvent(BaseModel):
    """A piece of a message's text."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int = 0
    delta: str
    logprobs: list[TokenLogprob] = []


class TextDoneEvent(BaseModel):
    """The whole text of a message."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int = 0
    text: str
    logprobs: list[TokenLogprob] = []


class ArgumentsDeltaEvent(BaseModel):
    """A piece of a function call's arguments."""

    type: Literal["response.function_call_arguments.delta"] = (
        "response.function_call_arguments.delta"
    )
    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class ArgumentsDoneEvent(BaseModel):
    """The whole arguments of a function call."""

    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str


Event = (
    ResponseEvent
    | ItemEvent
    | PartEvent
    | TextDeltaEvent
    | TextDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent
)


class ResponseStreamEvent(RootModel[Event]):
    """One event of a stream, for the OpenAPI document."""
