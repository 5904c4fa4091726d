"""Which parameters are ignored, and which are refused by name.

A parameter that would change the answer and is not supported is refused. On OpenAI's routes other unknown
ones are ignored, and named in a response header.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from server.errors import MOST_PROBLEMS, not_supported, short_name
from server.schemas.messages import ChatMessage
from server.schemas.requests import ChatCompletionRequest
from server.telemetry.logs import fields

logger = logging.getLogger(__name__)

IGNORED_HEADER = "x-ignored-parameters"
MOST_REMEMBERED = 1024  # names, since clients may invent them
EMPTY: tuple[Any, ...] = (None, [], {})  # clients send back responses with such fields
TEXT_ONLY = "the model generates only text"
USE_TOOLS = "it is the old name of tools and tool_choice; use these"
OTHER_SAMPLER = "use temperature, top_p, top_k or min_p"
ONE_PER_PROMPT = "the engine samples each answer once; use n for several"
OWN_TEMPLATE = "the model has one chat template, which ends with the generation prompt"
# Unsupported parameters: values that are harmless, and why others are refused.
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "functions": ((None, []), USE_TOOLS),
    "function_call": ((None, "none"), USE_TOOLS),
    "modalities": ((None, ["text"]), TEXT_ONLY),
    "audio": ((None,), TEXT_ONLY),
    "moderation": ((None,), "this server has no moderation"),
    "prediction": ((None,), "the engine does not use predicted outputs"),
    "reasoning_effort": ((None, "none"), "this is not a reasoning model"),
    "verbosity": ((None, "medium"), "ask for a short or a long answer in the prompt"),
    "web_search_options": ((None,), "this server has no web search"),
}
# The same for parameters of other servers.
UNSUPPORTED_EXTRAS: dict[str, tuple[tuple[Any, ...], str]] = {
    "add_generation_prompt": ((True,), OWN_TEMPLATE),
    "add_special_tokens": ((False,), OWN_TEMPLATE),
    "allowed_token_ids": (([],), "use logit_bias or a grammar"),
    "bad_words": (([],), "use logit_bias"),
    "best_of": ((1,), ONE_PER_PROMPT),
    "chat_template": ((), OWN_TEMPLATE),
    "continue_final_message": ((False,), OWN_TEMPLATE),
    "documents": (([],), "put their text into a message"),
    "dry_multiplier": ((0,), OTHER_SAMPLER),
    "ebnf": (("",), "use guided_grammar"),
    "echo": ((False,), "the prompt is not part of the answer"),
    "grammar": (("",), "use guided_grammar"),
    "guided_json_object": ((False,), "use response_format"),
    "guided_whitespace_pattern": ((), "white space in JSON is fixed"),
    "include_stop_str_in_output": ((False,), "the stop string is not part of the answer"),
    "json_schema": (({},), "use response_format or guided_json"),
    "logits_processors": (([],), "use logit_bias or a grammar"),
    "max_new_tokens": ((), "use max_tokens"),
    "min_new_tokens": ((0,), "use min_tokens"),
    "mirostat": ((0,), OTHER_SAMPLER),
    "n_predict": ((-1,), "use max_tokens"),
    "prompt_logprobs": ((False,), "only the answer has log probabilities"),
    "regex": (("",), "use guided_regex"),
    "repeat_penalty": ((1,), "use repetition_penalty"),
    "return_token_ids": ((False,), "use /tokenize"),
    "return_tokens_as_token_ids": ((False,), "use /tokenize"),
    "stop_sequences": (([],), "use stop"),
    "suffix": (("",), "the model does not fill in"),
    "tfs_z": ((1,), OTHER_SAMPLER),
    "top_a": ((0,), OTHER_SAMPLER),
    "typical_p": ((1,), OTHER_SAMPLER),
    "use_beam_search": ((False,), ONE_PER_PROMPT),
    "xtc_probability": ((0,), OTHER_SAMPLER),
}
# The same in messages.
UNSUPPORTED_IN_MESSAGES: dict[str, tuple[tuple[Any, ...], str]] = {
    "function_call": (EMPTY, "it is the old name of tool_calls; use that"),
    "audio": (EMPTY, TEXT_ONLY),
    "prefix": ((False,), "the model cannot continue a message; ask for it in the prompt"),
}
NO_EFFECT = (
    *("user", "store", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_options"),
    *("prompt_cache_retention", "safety_identifier", "chat_template_kwargs"),
)

# What looks like the name of a parameter, such as ``stream_options.include_obfuscation``.
PARAMETER = re.compile(r"[a-z_]\w{0,60}(\.\w{1,60}){0,8}", re.ASCII)
_logged: dict[str, None] = {}  # names, the oldest first


def refuse_unsupported(request: ChatCompletionRequest) -> None:
    """Refuse unsupported parameters by name; raises a 422 ApiError."""

    def refuse(name: str, value: Any, why: str) -> None:
        raise not_supported(f"{name} is not supported: {why}", (name,), value)

    for name, (harmless, why) in UNSUPPORTED.items():
        value = getattr(request, name)
        if value not in harmless:
            refuse(name, value, why)
    for name, value in (request.model_extra or {}).items():
        harmless, why = UNSUPPORTED_EXTRAS.get(name, ((value,), ""))
        if value not in harmless:
            refuse(name, value, why)
    if request.top_logprobs and not request.logprobs:
        refuse("top_logprobs", request.top_logprobs, "it requires logprobs to be true")


def refuse_message_fields(messages: Sequence[ChatMessage], ignore_unknown: bool) -> None:
    """Refuse unsupported fields of messages by name; raises a 422 ApiError.

    Args:
        messages: the conversation.
        ignore_unknown: refuse only what would change the answer.
    """
    for position, message in enumerate(messages):
        for name, value in (message.model_extra or {}).items():
            default = (value,) if ignore_unknown else EMPTY
            harmless, why = UNSUPPORTED_IN_MESSAGES.get(name, (default, "remove it"))
            if value not in harmless and value not in EMPTY:
                raise not_supported(
                    f"messages.{position}.{short_name(name)} is not supported: {why}",
                    ("messages", position, name),
                    value,
                )


def ignored_parameters(request: BaseModel) -> tuple[str, ...]:
    """Names of what was sent but is ignored, such as ``user`` or ``messages.cache_control``."""
    named = [name for name in NO_EFFECT if getattr(request, name, None)]
    options = getattr(request, "stream_options", None)
    if options is not None and options.include_obfuscation:
        named.append("stream_options.include_obfuscation")
    return tuple(dict.fromkeys([*named, *unknown_fields(request)]))


def unknown_fields(part: BaseModel, path: str = "") -> Iterator[str]:
    """Paths of undeclared fields that are not empty, without positions in lists."""
    for name, value in (part.model_extra or {}).items():
        if value not in EMPTY:
            yield path + short_name(name)
    for name, value in part:
        if name in type(part).model_fields:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, BaseModel):
                    yield from unknown_fields(item, f"{path}{name}.")


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """The header that names what was ignored, if anything; each name is logged once.

    Characters that a header cannot contain are percent-encoded, and only the first names fit. What does not
    look like a parameter's name may be a client's content, which no log holds.
    """
    if not names:
        return {}
    shown = [quote(name, safe=".") for name in names[:MOST_PROBLEMS]]
    if new := [name for name in shown if name not in _logged and PARAMETER.fullmatch(name)]:
        logger.info("ignored parameters", extra=fields(names=",".join(new)))
        _logged.update(dict.fromkeys(new))
        for oldest in list(_logged)[:-MOST_REMEMBERED]:
            del _logged[oldest]
    more = ["..."] if len(names) > MOST_PROBLEMS else []
    return {IGNORED_HEADER: ", ".join(shown + more)}
