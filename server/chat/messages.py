"""Converts a request's messages for the engine: texts, images, calls and their results."""

from __future__ import annotations

import json
from collections.abc import Sequence

import model
from server.errors import Loc, invalid_parameter
from server.images.urls import Images
from server.schemas.messages import ChatMessage, ImagePart, OtherMediaPart, RefusalPart, TextPart
from server.schemas.requests import ChatCompletionRequest, TokenizeRequest
from server.schemas.tools import ToolCall


def wanted_crops(
    request: ChatCompletionRequest | TokenizeRequest, engine: model.AsyncEngine
) -> int | None:
    """The request's ``num_crops``; None leaves it to the checkpoint.

    Raises:
        ApiError: it is more than the checkpoint's, or given twice.
    """
    options = request.mm_processor_kwargs
    given = {
        ("num_crops",): request.num_crops,
        ("mm_processor_kwargs", "num_crops"): options.num_crops if options else None,
    }
    asked = [(loc, crops) for loc, crops in given.items() if crops is not None]
    for loc, crops in asked:
        name = ".".join(loc)
        if crops > engine.num_crops:
            raise invalid_parameter(
                f"{name} is {crops}; this checkpoint allows 1 to {engine.num_crops}", loc, crops
            )
        if crops != asked[0][1]:
            raise invalid_parameter(f"{name} differs from num_crops; remove one", loc, crops)
    return asked[0][1] if asked else None


async def to_messages(
    messages: Sequence[ChatMessage], images: Images, max_images: int, num_crops: int | None = None
) -> list[model.Message]:
    """Convert messages for the engine, which decodes their images when it prepares the prompt.

    Args:
        messages: the conversation.
        images: collects the images.
        max_images: maximum number of images.
        num_crops: maximum crops of an image; None is the checkpoint's.

    Raises:
        ApiError: a part is not supported.
        model.ModalityError: an image URL is neither a data URL nor allowed to be fetched.
        model.TooManyImagesError: there are more than ``max_images``.
        model.ImageError: an image cannot be fetched.
    """
    called: dict[str, str] = {}  # names of functions by the ids of their calls
    converted = []
    for position, message in enumerate(messages):
        converted.append(_to_message(message, position, images, num_crops, called))
        called.update((call.id, call.function.name) for call in message.tool_calls or ())
    given = [image for message in converted for image in message.images]
    if len(given) > max_images:
        raise model.TooManyImagesError(
            f"too many images: {len(given)}; the limit is {max_images} (--max-images); remove the "
            "oldest",
            given[max_images].loc,
            len(given),
        )
    await images.fetch()
    return converted


def _to_message(
    message: ChatMessage,
    position: int,
    images: Images,
    num_crops: int | None,
    called: dict[str, str],
) -> model.Message:
    text, converted = _content(message, position, images, num_crops)
    role = message.role
    if message.tool_calls and role != "assistant":
        loc = ("messages", position, "tool_calls")
        raise invalid_parameter(
            f"messages.{position} has tool_calls and the role {role!r}; only assistants call", loc
        )
    if role == "tool":
        call_id = message.tool_call_id or ""
        name = called.get(call_id, message.name or call_id)
        # The model knows no role for results, so they are the user's.
        return model.Message("user", text, converted).prefixed(f"Result of {name}: ")
    lines = filter(None, [text, *map(_call_text, message.tool_calls or ())])
    return model.Message(role, "\n".join(lines), converted)


def _call_text(call: ToolCall) -> str:
    """The call in the form in which the model generates calls."""
    arguments = call.function.arguments or "{}"
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f'{{"name": {json.dumps(call.function.name)}, "arguments": {arguments}}}'


def _content(
    message: ChatMessage, position: int, images: Images, num_crops: int | None
) -> tuple[str, tuple[model.MessageImage, ...]]:
    """The text parts, joined by newlines, and the images."""
    if message.content is None or isinstance(message.content, str):
        return message.content or "", ()
    texts: list[str] = []
    converted: list[model.MessageImage] = []
    offset = 0  # characters of the texts so far, each with a newline
    for i, part in enumerate(message.content):
        loc: Loc = ("messages", position, "content", i)
        if isinstance(part, TextPart | RefusalPart):
            text = part.text if isinstance(part, TextPart) else part.refusal
            offset += len(text) + 1
            texts.append(text)
        elif isinstance(part, OtherMediaPart):
            raise model.ModalityError(
                f"messages.{position}.content.{i} has the type {part.type!r}; Phi-3-vision "
                "accepts only text and images",
                loc,
            )
        else:
            converted.append(_to_image(part, images, num_crops, loc, offset))
    return "\n".join(texts), tuple(converted)


def _to_image(
    part: ImagePart, images: Images, num_crops: int | None, loc: Loc, offset: int
) -> model.MessageImage:
    image_url = part.image_url or part.image
    if image_url is None:
        message = f"{'.'.join(map(str, loc))}.image_url is missing"
        raise invalid_parameter(message, (*loc, "image_url"))
    loc = (*loc, "image" if part.image_url is None else "image_url", "url")
    crops = 1 if image_url.detail == "low" else num_crops
    return model.MessageImage(images.add(image_url.url, loc), crops, loc, offset)
