"""Validates request bodies and converts them to sampling parameters. Independent of HTTP."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

import model
from server.chat.grammars import grammar
from server.chat.parameters import ignored_parameters, refuse_message_fields, refuse_unsupported
from server.chat.tools import ForcedCall, forced_call
from server.errors import (
    LONGEST_MESSAGE,
    LONGEST_SHOWN_PATH,
    MOST_PROBLEMS,
    ApiError,
    Loc,
    from_validation_error,
    invalid_parameter,
    short_name,
    short_path,
)
from server.schemas.requests import (
    KNOWN,
    ChatCompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

# How to handle extra parameters: by Azure's header, or ``ignore`` unknown ones and honour the others.
ExtraPolicy = Literal["error", "drop", "pass-through", "ignore"]

MOST_KEYS = 1024  # in one object; the maximum for logit_bias
# Items and keys in the whole body, including nested ones; an ordinary message has about a dozen.
MOST_VALUES_PER_MESSAGE = 24
MOST_VALUES_ELSEWHERE = 8192

Request = TypeVar("Request", bound=BaseModel)


class ParsedChat(NamedTuple):
    """A valid request.

    Attributes:
        request: the body.
        params: its sampling parameters.
        call: the call that it forces, if any.
        ignored: names of parameters that have no effect.
    """

    request: ChatCompletionRequest
    params: model.SamplingParams
    call: ForcedCall | None
    ignored: tuple[str, ...]


def parse_chat(body: object, extra_policy: ExtraPolicy, max_messages: int) -> ParsedChat:
    """Validate a parsed JSON body.

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
    dropped = [short_name(name) for name in extras] if extra_policy == "drop" else []
    if dropped:
        given = {name: value for name, value in given.items() if name in KNOWN}
    request = validated(ChatCompletionRequest, given, extra_policy == "ignore")
    refuse_unsupported(request)
    refuse_message_fields(request.messages, extra_policy == "ignore")
    call = forced_call(request.tools or (), request.tool_choice)
    params = _sampling_params(request, call)
    ignored = [*dropped, *ignored_parameters(request)]
    wanted = request.response_format
    if call is not None and wanted is not None and wanted.type != "text":
        ignored.append("response_format")  # it is for text
    return ParsedChat(request, params, call, tuple(ignored))


def validated(kind: type[Request], body: dict[str, Any], ignore_unknown: bool) -> Request:
    """Validate a body; raises a 422 ApiError.

    Args:
        kind: its schema.
        body: the JSON object.
        ignore_unknown: keep unknown fields, for ``ignored_parameters``, instead of refusing them.
    """
    try:
        return kind.model_validate(body, extra="allow" if ignore_unknown else None)
    except ValidationError as error:
        raise from_validation_error(error, body) from error


def _names(extras: list[str]) -> list[str]:
    """The first names, as many as fit into the message."""
    names = [short_name(name) for name in extras[:MOST_PROBLEMS]]
    while len(names) > 1 and len(repr(names)) > LONGEST_MESSAGE - 300:
        names.pop()
    return names


def parse_tokenize(body: object, max_messages: int) -> tuple[TokenizeRequest, ForcedCall | None]:
    """Validate the body of a tokenize request; unknown fields are kept. Raises a 422 ApiError."""
    request = validated(TokenizeRequest, bounded(body, max_messages), ignore_unknown=True)
    if (request.messages is None) == (request.prompt is None):
        raise invalid_parameter("send either messages or a prompt", ("messages",))
    refuse_message_fields(request.messages or (), ignore_unknown=True)
    return request, forced_call(request.tools or (), request.tool_choice)


def parse_detokenize(body: object) -> DetokenizeRequest:
    """Validate the body of a detokenize request; unknown fields are kept. Raises a 422 ApiError."""
    if not isinstance(body, dict):
        raise invalid_parameter("the body must be a JSON object", value=body)
    if len(body) > MOST_KEYS:
        raise invalid_parameter(f"the body has {len(body)} keys; the limit is {MOST_KEYS}")
    return validated(DetokenizeRequest, body, ignore_unknown=True)


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


def _sampling_params(
    request: ChatCompletionRequest, call: ForcedCall | None
) -> model.SamplingParams:
    if request.truncate_prompt_tokens == 0:
        raise invalid_parameter(
            "truncate_prompt_tokens is 0; it must be -1 or at least 1",
            ("truncate_prompt_tokens",),
            0,
        )
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
        grammar=grammar(request, call),
        n=request.n,
        skip_special_tokens=request.skip_special_tokens,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        priority=request.priority,
    )
