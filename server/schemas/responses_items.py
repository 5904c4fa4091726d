"""Input items of the Responses API: messages, function calls and their outputs.

Clients send back whole output items, so the fields of output items are declared, also those without effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Discriminator, Field, Tag

from server.schemas.tools import FunctionName
from server.schemas.values import Body

# Fields that clients copy from responses.
Copied = Annotated[Any, Field(description="no effect")]


class InputText(Body):
    """A text part of any message but the assistant's."""

    type: Literal["input_text"]
    text: str


class OutputText(Body):
    """A text part of an assistant message."""

    type: Literal["output_text"]
    text: str
    annotations: Copied = None
    logprobs: Copied = None


class Refusal(Body):
    """An assistant's refusal, which counts as its text."""

    type: Literal["refusal"]
    refusal: str


class InputImage(Body):
    """An image; ``low`` detail uses the whole image as a single crop, with fewer tokens."""

    type: Literal["input_image"]
    image_url: str | None = Field(None, description="a data URL, or a URL of an allowed host")
    detail: Literal["auto", "low", "high", "original"] = "auto"
    file_id: str | None = Field(None, description="not supported")


OtherPart = Literal["input_file", "input_audio"]


class UnsupportedPart(BaseModel):
    """A part that other models support; this server refuses it."""

    type: OtherPart


def _type_of(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


def _part_kind(part: Any) -> str | None:
    kind = _type_of(part)
    return "<other>" if kind in get_args(OtherPart) else f"<{kind}>"


# Tags appear in pydantic's error paths; the brackets distinguish them from keys of the body.
Part = Annotated[
    Annotated[InputText, Tag("<input_text>")]
    | Annotated[OutputText, Tag("<output_text>")]
    | Annotated[Refusal, Tag("<refusal>")]
    | Annotated[InputImage, Tag("<input_image>")]
    | Annotated[UnsupportedPart, Tag("<other>")],
    Discriminator(
        _part_kind,
        custom_error_type="invalid_content_part",
        custom_error_message="the type of a content part must be 'input_text', 'input_image', "
        "'output_text' or 'refusal'",
    ),
]


def _text_or_list(value: Any) -> str | None:
    if isinstance(value, str):
        return "<string>"
    return "<list>" if isinstance(value, list) else None


Parts = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[Part], Field(min_length=1, max_length=256, fail_fast=True), Tag("<list>")],
    Discriminator(
        _text_or_list,
        custom_error_type="invalid_content",
        custom_error_message="must be a string or a list of parts",
    ),
]


class _Item(Body):
    """An item of a conversation."""

    id: Copied = None
    status: Copied = None


class InputMessage(_Item):
    """A message; the ``type`` may be missing."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    phase: Copied = None


Name = Annotated[str, Field(min_length=1, max_length=256)]


class FunctionCall(_Item):
    """A call of a function by the model."""

    type: Literal["function_call"]
    call_id: Name
    name: FunctionName
    arguments: str = Field(description="JSON")


class FunctionCallOutput(_Item):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: Name
    output: Parts


class ItemReference(Body):
    """An item of a stored response, by its id; the ``type`` may be missing."""

    type: Literal["item_reference"] = "item_reference"
    id: Name


OtherItem = Literal[
    "additional_tools",
    "apply_patch_call",
    "apply_patch_call_output",
    "code_interpreter_call",
    "compaction",
    "compaction_trigger",
    "computer_call",
    "computer_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "file_search_call",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "mcp_list_tools",
    "reasoning",
    "shell_call",
    "shell_call_output",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
]


class UnsupportedItem(BaseModel):
    """An item of a tool or a kind of model that this server does not have; it is refused."""

    type: OtherItem


def _item_kind(item: Any) -> str | None:
    kind = _type_of(item)
    if kind is None and isinstance(item, dict) and item.get("type") is None:
        reference = "id" in item and "role" not in item and "content" not in item
        return "<item_reference>" if reference else "<message>"
    return "<other>" if kind in get_args(OtherItem) else f"<{kind}>"


InputItem = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")]
    | Annotated[ItemReference, Tag("<item_reference>")]
    | Annotated[UnsupportedItem, Tag("<other>")],
    Discriminator(
        _item_kind,
        custom_error_type="invalid_item",
        custom_error_message="the type of an item must be 'message', 'function_call', "
        "'function_call_output' or 'item_reference'",
    ),
]

Input = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[list[InputItem], Field(min_length=1, fail_fast=True), Tag("<list>")],
    Discriminator(
        _text_or_list,
        custom_error_type="invalid_input",
        custom_error_message="must be a string or a list of items",
    ),
]
