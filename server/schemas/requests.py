"""Request bodies, the same for Azure's and OpenAI's clients.

Requests are validated after ``server.chat.parse`` has handled extra parameters, so undeclared ones are
refused here, unless the route ignores them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)

from server.schemas.messages import ChatMessage
from server.schemas.tools import Tool, ToolChoice
from server.schemas.values import Body, Count, Flag, Integer, IsNumber, Number

INT64 = 2**63


def _one_stop(value: Any) -> Any:
    """Accept a single string, as in Azure's REST sample."""
    return [value] if isinstance(value, str) else value


Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Annotated[
    list[Stop],
    Field(max_length=32, fail_fast=True),
    BeforeValidator(_one_stop, json_schema_input_type=Stop | list[Stop]),
]
Format = Literal["text", "json_object", "json_schema"]


class JsonSchema(Body):
    """A JSON schema that the answer always matches, regardless of ``strict``."""

    model_config = ConfigDict(protected_namespaces=())

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: Flag = False


class ResponseFormat(Body):
    """The format of the answer."""

    type: Format
    json_schema: JsonSchema | None = None


def _format_of_name(value: Any) -> Any:
    """Accept a bare string, which old Azure SDKs send."""
    return {"type": value} if isinstance(value, str) else value


ResponseFormatOrName = Annotated[
    ResponseFormat,
    BeforeValidator(_format_of_name, json_schema_input_type=Format | ResponseFormat),
]


class StreamOptions(Body):
    """Options of streams."""

    include_usage: Flag = False
    continuous_usage_stats: Flag = Field(
        False, description="with include_usage, all chunks have the usage so far"
    )
    include_obfuscation: Flag = Field(False, description="ignored: chunks are never padded")


Choices = Annotated[list[str], Field(min_length=1, max_length=1024)]
Pattern = Annotated[str, Field(min_length=1)]
JsonSchemaOrText = dict[str, Any] | Annotated[str, Field(min_length=2)]


class StructuredOutputs(Body):
    """What the answer must match, in vLLM's form: one of these."""

    json_schema: JsonSchemaOrText | None = Field(None, alias="json")
    json_object: Flag = False
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Pattern | None = None


class ImageOptions(Body):
    """Options of the image processor."""

    num_crops: Count | None = None


# JSON schemas for unsupported parameters; ``server.chat.parameters`` refuses other values.
NULL = WithJsonSchema({"type": "null"})
NONE = WithJsonSchema({"const": "none"})
NOTHING = WithJsonSchema({"type": "array", "maxItems": 0})
TEXT = WithJsonSchema({"const": ["text"]})
MEDIUM = WithJsonSchema({"const": "medium"})

Messages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]


class ChatCompletionRequest(Body):
    """The body of a chat completion request.

    Lists are validated up to the first error, so that long invalid ones do not produce a million errors.
    """

    messages: Messages
    model: str | None = Field(None, description="ignored: the server has one model")
    temperature: Number = Field(1.0, ge=0, le=2)
    top_p: Number = Field(1.0, ge=0, le=1)
    presence_penalty: Number = Field(0.0, ge=-2, le=2)
    frequency_penalty: Number = Field(0.0, ge=-2, le=2)
    max_tokens: Count | None = Field(
        None, description="clamped to the context window; by default the rest of it, up to a limit"
    )
    max_completion_tokens: Count | None = Field(None, description="newer name for max_tokens")
    seed: Annotated[int, Field(ge=-INT64, lt=INT64), IsNumber] | None = None
    stop: Stops = Field([])
    stream: Flag = False
    stream_options: StreamOptions | None = None
    n: Integer = Field(1, ge=1, le=128)
    logprobs: Flag = False
    top_logprobs: Annotated[int, Field(ge=0, le=20), IsNumber] | None = Field(
        None, description="requires logprobs"
    )
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100), IsNumber]] = Field(
        {}, max_length=1024, description="maps token ids to values added to their logits"
    )
    response_format: ResponseFormatOrName | None = None
    tools: list[Tool] | None = Field(None, description="functions; requires tool_choice")
    tool_choice: ToolChoice | None = Field(
        None, description="auto, which is also the default with tools, is not supported"
    )
    parallel_tool_calls: Flag = Field(True, description="ignored: an answer is one call")
    # OpenAI's parameters: the first group is ignored, the second (from functions on) is not supported.
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    functions: Annotated[list[Any] | None, NOTHING] = None
    function_call: Annotated[Any, NONE] = None
    modalities: Annotated[list[str], Field(max_length=16, fail_fast=True), TEXT] | None = None
    audio: Annotated[Any, NULL] = None
    moderation: Annotated[Any, NULL] = None
    prediction: Annotated[Any, NULL] = None
    reasoning_effort: Annotated[Any, NONE] = None
    verbosity: Annotated[Any, MEDIUM] = None
    web_search_options: Annotated[Any, NULL] = None
    # The engine's own parameters.
    top_k: Integer = Field(0, ge=-1, description="0 or -1 considers all tokens")
    min_p: Number = Field(0.0, ge=0, le=1)
    repetition_penalty: Number = Field(1.0, ge=0.01, le=10)
    ignore_eos: Flag = False
    min_tokens: Integer = Field(0, ge=0)
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchemaOrText | None = None
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: Pattern | None = Field(
        None, description="in Lark or GBNF syntax, with a rule named start or root"
    )
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="cached prefixes are shared only between requests with the same salt"
    )
    stop_token_ids: list[Annotated[int, Field(ge=0), IsNumber]] = Field(
        [], max_length=1024, fail_fast=True
    )
    skip_special_tokens: Flag = Field(
        True, description="whether control tokens inside the answer are left out of its text"
    )
    num_crops: Count | None = Field(
        None, description="maximum crops of the image; the checkpoint's by default, and at most"
    )
    mm_processor_kwargs: ImageOptions | None = Field(None, description="num_crops, as in vLLM")
    truncate_prompt_tokens: Annotated[int, Field(ge=-1), IsNumber] | None = Field(
        None,
        description="keep the last tokens of a longer prompt; -1 keeps as many as leave room for the "
        "answer",
    )
    priority: Annotated[int, Field(ge=-INT64, lt=INT64), IsNumber] = Field(
        0, description="among waiting requests of a caller, lower ones start first"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="ignored: the chat template has no options"
    )


# Parameters that are extra in Azure's sense; all others are Azure's or OpenAI's.
EXTRAS = {
    "top_k",
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "min_tokens",
    "stop_token_ids",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "cache_salt",
    "skip_special_tokens",
    "num_crops",
    "mm_processor_kwargs",
    "truncate_prompt_tokens",
    "priority",
    "chat_template_kwargs",
}
KNOWN = set(ChatCompletionRequest.model_fields) - EXTRAS


class TokenizeRequest(Body):
    """The body of a tokenize request: a conversation or plain text."""

    model: str | None = Field(None, description="ignored: the server has one model")
    messages: Messages | None = None
    prompt: str | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    num_crops: Count | None = None
    mm_processor_kwargs: ImageOptions | None = None
    add_special_tokens: Flag = Field(True, description="whether to prepend <s> to a prompt")
    add_generation_prompt: Literal[True] = Field(
        True, description="conversations always end with the generation prompt"
    )
    return_token_strs: Flag = False


class DetokenizeRequest(Body):
    """The body of a detokenize request."""

    model: str | None = Field(None, description="ignored: the server has one model")
    tokens: Annotated[list[Annotated[int, Field(ge=-1), IsNumber]], Field(fail_fast=True)] = Field(
        description="token ids; -1 is a position of the image, as in /tokenize"
    )
