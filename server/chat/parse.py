"""Converts request bodies to messages and sampling parameters for the engine.

The only place that decides which parameters are honoured, ignored or refused. Independent of HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ValidationError

import model
from server.chat.grammars import grammar
from server.errors import (
    LONGEST_MESSAGE,
    LONGEST_SHOWN_PATH,
    MOST_PROBLEMS,
    ApiError,
    Loc,
    from_validation_error,
    invalid_parameter,
    not_supported,
    short_name,
    short_path,
)
from server.images.urls import Images
from server.schemas.messages import ChatMessage, ImagePart, OtherMediaPart, TextPart
from server.schemas.requests import KNOWN, ChatCompletionRequest, TokenizeRequest

ExtraPolicy = Literal["error", "drop", "pass-through"]

NO_TOOLS = "Phi-3-vision was not trained to call tools"
TEXT_ONLY = "the model generates only text"
# OpenAI's unsupported parameters: values that are harmless, and why others are refused.
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "tools": ((None, []), NO_TOOLS),
    "tool_choice": ((None, "none"), NO_TOOLS),
    "functions": ((None, []), NO_TOOLS),
    "function_call": ((None, "none"), NO_TOOLS),
    "modalities": ((None, ["text"]), TEXT_ONLY),
    "audio": ((None,), TEXT_ONLY),
    "moderation": ((None,), "this server has no moderation"),
    "prediction": ((None,), "the engine does not use predicted outputs"),
    "reasoning_effort": ((None, "none"), "this is not a reasoning model"),
    "verbosity": ((None,), "ask for a short or a long answer in the prompt"),
    "web_search_options": ((None,), "this server has no web search"),
}

MOST_KEYS = 1024  # in one object; the maximum for logit_bias
# Items and keys in the whole body, including nested ones; an ordinary message has about a dozen.
MOST_VALUES_PER_MESSAGE = 24
MOST_VALUES_ELSEWHERE = 8192


def parse_chat(
    body: object, extra_policy: ExtraPolicy, max_messages: int
) -> tuple[ChatCompletionRequest, model.SamplingParams]:
    """Validate a parsed JSON body and return the request and its sampling parameters.

    Args:
        body: the JSON value.
        extra_policy: how to handle parameters that neither Azure nor OpenAI defines.
        max_messages: maximum number of messages.

    Raises:
        ApiError: 400 for extra parameters under ``error``, otherwise 422.
    """
    body = bounded(body, max_messages)
    given = {name: value for name, value in body.items() if value is not None}
    extras = [name for name in given if name not in KNOWN]
    if extras and extra_policy == "error":
        # Azure's own sentence, which LiteLLM recognises and recovers from.
        raise ApiError(
            400,
            "extra_forbidden",
            f"Extra parameters {_names(extras)} are not "
            "allowed when extra-parameters is not set or set to be 'error'. Set extra-parameters "
            "to 'pass-through' to pass to the model.",
            (extras[0],),
            given[extras[0]],
        )
    if extra_policy == "drop":
        given = {name: value for name, value in given.items() if name in KNOWN}
    try:
        request = ChatCompletionRequest.model_validate(given)
    except ValidationError as error:
        raise from_validation_error(error, given) from error
    _refuse_unsupported(request)
    return request, _sampling_params(request)


def _names(extras: list[str]) -> list[str]:
    """The first names, as many as fit into the message."""
    names = [short_name(name) for name in extras[:MOST_PROBLEMS]]
    while len(names) > 1 and len(repr(names)) > LONGEST_MESSAGE - 300:
        names.pop()
    return names


def parse_tokenize(body: object, max_messages: int) -> TokenizeRequest:
    """Validate the body of a tokenize request; raises a 422 ApiError."""
    body = bounded(body, max_messages)
    try:
        request = TokenizeRequest.model_validate(body)
    except ValidationError as error:
        raise from_validation_error(error, body) from error
    if (request.messages is None) == (request.prompt is None):
        raise invalid_parameter("send either messages or a prompt", ("messages",))
    return request


def bounded(body: object, max_messages: int, key: str = "messages") -> dict[str, Any]:
    """Check that the body is an object and not too large to validate; ``key`` names its messages.

    Raises:
        ApiError: 422.
    """
    if not isinstance(body, dict):
        raise invalid_parameter("the body must be a JSON object", value=body)
    messages = body.get(key)
    if isinstance(messages, list) and len(messages) > max_messages:
        what = "messages" if key == "messages" else f"items in {key}"
        raise invalid_parameter(
            f"too many {what}: {len(messages)}; the limit is {max_messages} (--max-messages); remove "
            "the oldest",
            (key,),
            len(messages),
        )
    _refuse_oversized(body, MOST_VALUES_PER_MESSAGE * max_messages + MOST_VALUES_ELSEWHERE)
    return body


def _refuse_oversized(body: dict[str, Any], most_values: int) -> None:
    """Refuse bodies whose validation would hold the GIL for seconds.

    Raises:
        ApiError: an object has too many keys, or the body too many values.
    """
    left = most_values
    waiting: list[tuple[Loc, dict[str, Any] | list[Any]]] = [((), body)]
    while waiting:
        loc, container = waiting.pop()
        left -= len(container)
        if isinstance(container, dict) and len(container) > MOST_KEYS:
            where = ".".join(map(str, short_path(loc))) or "the body"
            reason = f"{where} has {len(container)} keys; the limit is {MOST_KEYS}; remove some"
            raise invalid_parameter(reason, loc, container)
        if left < 0:
            (field,) = short_path(loc[:1])  # the traversal order is arbitrary, so no deeper path
            reason = f"the body has more values than the limit of {most_values}; shorten {field}"
            raise invalid_parameter(reason, (field,), container)
        items = container.items() if isinstance(container, dict) else enumerate(container)
        shown = len(loc) < LONGEST_SHOWN_PATH  # longer paths could take more memory than the body
        waiting += [
            ((*loc, key) if shown else loc, item)
            for key, item in items
            if isinstance(item, dict | list)
        ]


def _sampling_params(request: ChatCompletionRequest) -> model.SamplingParams:
    return model.SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=max(request.top_k, 0),
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=request.logit_bias,
        seed=request.seed,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        min_tokens=request.min_tokens,
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        grammar=grammar(request),
        n=request.n,
    )


async def to_messages(
    messages: Sequence[ChatMessage], images: Images, max_images: int
) -> list[model.Message]:
    """Convert messages for the engine, which decodes their images when it prepares the prompt.

    Args:
        messages: the conversation.
        images: collects the images.
        max_images: maximum number of images.

    Raises:
        ApiError: a part is not supported.
        model.ModalityError: an image URL is neither a data URL nor allowed to be fetched.
        model.TooManyImagesError: there are more than ``max_images``.
        model.ImageError: an image cannot be fetched.
    """
    converted = [_to_message(message, i, images) for i, message in enumerate(messages)]
    given = [image for message in converted for image in message.images]
    if len(given) > max_images:
        raise model.TooManyImagesError(
            f"too many images: {len(given)}; the limit is {max_images} (--max-images); remove the "
            "oldest, since the model only sees the last one",
            given[max_images].loc,
            len(given),
        )
    await images.fetch()
    return converted


def _to_message(message: ChatMessage, position: int, images: Images) -> model.Message:
    loc = ("messages", position)
    if message.role == "tool":  # checked before its tool_call_id, to report the cause
        raise not_supported(
            f"messages.{position}.role is 'tool', but Phi-3-vision was not trained to call tools; "
            "put the result in a user message",
            (*loc, "role"),
            message.role,
        )
    for name, value in (message.model_extra or {}).items():
        # Clients send back responses with empty fields, such as `tool_calls: null` or `annotations: []`.
        if value not in (None, [], {}):
            raise not_supported(
                f"messages.{position}.{short_name(name)} is not supported; remove it",
                (*loc, name),
                value,
            )
    if message.content is None or isinstance(message.content, str):
        return model.Message(message.role, message.content or "")
    texts: list[str] = []
    converted: list[model.MessageImage] = []
    for i, part in enumerate(message.content):
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, OtherMediaPart):
            raise model.ModalityError(
                f"messages.{position}.content.{i} has the type {part.type!r}; Phi-3-vision "
                "accepts only text and images",
                (*loc, "content", i),
            )
        else:
            converted.append(_to_image(part, images, (*loc, "content", i)))
    return model.Message(message.role, "\n".join(texts), tuple(converted))


def _to_image(part: ImagePart, images: Images, loc: Loc) -> model.MessageImage:
    image_url = part.image_url or part.image
    if image_url is None:
        message = f"{'.'.join(map(str, loc))}.image_url is missing"
        raise invalid_parameter(message, (*loc, "image_url"))
    loc = (*loc, "image" if part.image_url is None else "image_url", "url")
    return model.MessageImage(images.add(image_url.url, loc), image_url.detail == "low", loc)


def _refuse_unsupported(request: ChatCompletionRequest) -> None:
    """Refuse unsupported parameters by name."""

    def refuse(name: str, value: Any, why: str) -> None:
        raise not_supported(f"{name} is not supported: {why}", (name,), value)

    for name, (harmless, why) in UNSUPPORTED.items():
        value = getattr(request, name)
        if value not in harmless:
            refuse(name, value, why)
    if request.stream_options and request.stream_options.include_obfuscation:
        refuse("stream_options", "include_obfuscation", "remove include_obfuscation")
    if request.top_logprobs is not None and not request.logprobs:
        refuse("top_logprobs", request.top_logprobs, "it requires logprobs to be true")
