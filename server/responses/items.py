"""Normalizes input items, and turns items into messages of a chat completion.

Stored conversations consist of normalized items, so there is one way from items to messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import ApiError, Loc, not_supported
from server.responses.ids import item_id
from server.schemas.responses_items import (
    FunctionCall,
    FunctionCallOutput,
    InputImage,
    InputItem,
    InputMessage,
    InputText,
    ItemReference,
    OutputText,
    Part,
    Refusal,
    UnsupportedPart,
)

Item = dict[str, Any]  # as in OpenAI's lists of input items


def references(items: str | Sequence[InputItem]) -> list[tuple[Loc, str]]:
    """The paths and ids of the stored items that the input refers to."""
    return [
        (("input", position, "id"), item.id)
        for position, item in enumerate(items)
        if isinstance(item, ItemReference)
    ]


def normalized(
    given: str | Sequence[InputItem], response: str, stored: Mapping[str, Item]
) -> list[Item]:
    """The items with all their fields, and with ids.

    Args:
        given: the input of a request.
        response: id of the response.
        stored: the items that the input refers to, by id.

    Raises:
        ApiError: an item or a part is not supported.
    """
    if isinstance(given, str):
        given = [InputMessage(role="user", content=given)]
    return [_item(item, position, response, stored) for position, item in enumerate(given)]


def _item(item: InputItem, position: int, response: str, stored: Mapping[str, Item]) -> Item:
    loc, place = ("input", position), f"i{position}"
    match item:
        case InputMessage(role=role):
            return {
                "id": item_id(response, "msg", place),
                "type": "message",
                "status": "completed",
                "role": role,
                "content": _parts(item.content, role, (*loc, "content")),
            }
        case FunctionCall():
            return {
                "id": item_id(response, "fc", place),
                "type": "function_call",
                "status": "completed",
                **item.model_dump(include={"call_id", "name", "arguments"}),
            }
        case FunctionCallOutput(output=output):
            return {
                "id": item_id(response, "fco", place),
                "type": "function_call_output",
                "status": "completed",
                "call_id": item.call_id,
                "output": output
                if isinstance(output, str)
                else _parts(output, "user", (*loc, "output")),
            }
        case ItemReference():
            return stored[item.id]
        case _:
            raise not_supported(
                f"input.{position} has the type {item.type!r}, which this server does not support; "
                "remove it",
                (*loc, "type"),
                item.type,
            )


def _parts(content: str | Sequence[Part], role: str, loc: Loc) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [_text(content, role)]
    return [_part(part, role, (*loc, position)) for position, part in enumerate(content)]


def _part(part: Part, role: str, loc: Loc) -> dict[str, Any]:
    name = ".".join(map(str, loc))
    match part:
        case InputText(text=text) | OutputText(text=text):
            return _text(text, role)
        case Refusal(refusal=text):
            return (
                {"type": "refusal", "refusal": text} if role == "assistant" else _text(text, role)
            )
        case InputImage(file_id=str(file_id)):
            raise not_supported(
                f"{name}.file_id is not supported: this server stores no files; send the image as a "
                "data URL in image_url",
                (*loc, "file_id"),
                file_id,
            )
        case InputImage(image_url=None):
            reason = f"{name}.image_url is missing; send the image as a data URL"
            raise ApiError(422, "invalid_parameter", reason, (*loc, "image_url"))
        case InputImage(image_url=url, detail=detail):
            detail = "high" if detail == "original" else detail
            return {"type": "input_image", "image_url": url, "detail": detail}
        case UnsupportedPart(type=kind):
            reason = f"{name} has the type {kind!r}; Phi-3-vision accepts only text and images"
            raise ApiError(422, "modality_not_supported", reason, loc)


def _text(text: str, role: str) -> dict[str, Any]:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": []}
    return {"type": "input_text", "text": text}


def to_messages(items: Sequence[tuple[Item, Loc]]) -> tuple[list[dict[str, Any]], list[Loc]]:
    """Convert items to messages of a chat completion; consecutive function calls become one message.

    Args:
        items: normalized items, each with its path in the request.

    Returns:
        the messages, and for each the path of what it was made of.
    """
    messages: list[dict[str, Any]] = []
    places: list[Loc] = []
    before = ""  # type of the item before
    for item, loc in items:
        inside: Loc = ()
        match item["type"]:
            case "message":
                inside = ("content",)
                message = {"role": item["role"], "content": _chat_parts(item["content"])}
            case "function_call_output":
                inside = ("output",)
                output = item["output"]
                content = output if isinstance(output, str) else _chat_parts(output)
                message = {"role": "tool", "tool_call_id": item["call_id"], "content": content}
            case _:
                message = {"role": "assistant", "content": None, "tool_calls": [_tool_call(item)]}
        if before == item["type"] == "function_call":
            messages[-1]["tool_calls"] += message["tool_calls"]
        else:
            messages.append(message)
            places.append((*loc, *inside) if len(loc) == 2 else loc)
        before = item["type"]
    return messages, places


def _tool_call(item: Item) -> dict[str, Any]:
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}


def _chat_parts(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [_chat_part(part) for part in parts]


def _chat_part(part: dict[str, Any]) -> dict[str, Any]:
    match part["type"]:
        case "input_image":
            image = {"url": part["image_url"], "detail": part["detail"]}
            return {"type": "image_url", "image_url": image}
        case "refusal":
            return {"type": "text", "text": part["refusal"]}
        case _:
            return {"type": "text", "text": part["text"]}
