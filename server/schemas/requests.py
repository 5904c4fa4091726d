"""Bodies of requests, as both dialects share them.

A request is validated after extra parameters are dealt with (``server.convert``), so what is not
declared here is refused by name. A null is an absent field, numbers may be sent as strings (the
seed's JavaScript sample does), and the JSON schemas say so.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Strict,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError

INT64 = 2**63
NUMBER = r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?"


class _Lenient(BaseModel):
    """A null is an absent field, at any depth; the JSON schema tells of it, and of ``NUMBER``."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: item for name, item in value.items() if item is not None}
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            kinds = field.pop("anyOf", None) or [field]
            if any(kind.get("type") in ("number", "integer") for kind in kinds):
                kinds = [*kinds, {"type": "string", "pattern": f"^{NUMBER}$"}]
            if name not in required and {"type": "null"} not in kinds and field:
                kinds = [*kinds, {"type": "null"}]
            if len(kinds) > 1:
                about = {
                    key: field[key] for key in ("title", "description", "default") if key in field
                }
                kinds = [{k: v for k, v in kind.items() if k not in about} for kind in kinds]
                schema["properties"][name] = {**about, "anyOf": kinds}
        return schema


class _Strict(_Lenient):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _number(value: Any) -> Any:
    """Python's booleans are numbers, JSON's are not; a string must be one of JSON's numbers."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number, not a boolean")
    if isinstance(value, str) and not re.fullmatch(NUMBER, value):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


IsNumber = BeforeValidator(_number)  # the last annotation, or bounds miss the JSON schema
Integer = Annotated[int, IsNumber]
Number = Annotated[float, IsNumber]
Count = Annotated[int, Field(ge=1), IsNumber]
Flag = Annotated[bool, Strict()]


class TextPart(_Strict):
    """Text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """An image as a data URL; ``low`` detail is the whole image in one crop, with fewer tokens."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """An image in a user message. The seed's JavaScript sample writes ``image`` for the key."""

    type: Literal["image_url"]
    image_url: ImageUrl | None = None
    image: ImageUrl | None = None


OtherMedia = Literal["input_audio", "audio_url", "input_video", "video", "video_url", "file"]


class OtherMediaPart(BaseModel):
    """What clients may send to other models and this one refuses."""

    type: OtherMedia


def _part_kind(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    if not isinstance(kind, str):
        return None
    return "<other>" if kind in get_args(OtherMedia) else f"<{kind}>"


# Tags show up in the paths of errors; spelled so that none is mistaken for a key of the body.
ContentPart = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[OtherMediaPart, Tag("<other>")],
    Discriminator(
        _part_kind,
        custom_error_type="invalid_content_part",
        custom_error_message="a content part has a type of 'text' or 'image_url'",
    ),
]


def _content_kind(content: Any) -> str | None:
    if isinstance(content, str):
        return "<string>"
    return "<parts>" if isinstance(content, list) else None


Content = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[
        list[ContentPart], Field(min_length=1, max_length=256, fail_fast=True), Tag("<parts>")
    ],
    Discriminator(
        _content_kind,
        custom_error_type="invalid_content",
        custom_error_message="content is a string or a list of parts",
    ),
]


class ChatMessage(BaseModel):
    """One message. Further keys that answers carry are taken back as long as they are empty."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = Field(
        None, validate_default=True, description="only an assistant's message may have none"
    )
    name: str | None = None

    @field_validator("content")
    @classmethod
    def _assistants_may_say_nothing(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and info.data.get("role") != "assistant":
            raise PydanticKnownError("missing")
        return content


def _one_stop(value: Any) -> Any:
    """One string is a list of one, as in Azure's REST sample."""
    return [value] if isinstance(value, str) else value


Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Annotated[
    list[Stop],
    Field(max_length=32, fail_fast=True),
    BeforeValidator(_one_stop, json_schema_input_type=Stop | list[Stop]),
]
Format = Literal["text", "json_object", "json_schema"]


class JsonSchema(_Strict):
    """A JSON schema that the answer matches; guaranteed, ``strict`` or not."""

    model_config = ConfigDict(protected_namespaces=())

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: Flag = False


class ResponseFormat(_Lenient):
    """What the answer must look like."""

    type: Format
    json_schema: JsonSchema | None = None


def _format_of_name(value: Any) -> Any:
    """Old Azure SDKs send the bare string."""
    return {"type": value} if isinstance(value, str) else value


ResponseFormatOrName = Annotated[
    ResponseFormat,
    BeforeValidator(_format_of_name, json_schema_input_type=Format | ResponseFormat),
]


class StreamOptions(_Strict):
    """How a stream ends."""

    include_usage: Flag = False
    include_obfuscation: Flag = False


# What parameters that cannot be served may be; ``server.convert`` says of the rest why not.
NULL = WithJsonSchema({"type": "null"})
NONE = WithJsonSchema({"const": "none"})
NOTHING = WithJsonSchema({"type": "array", "maxItems": 0})
TEXT = WithJsonSchema({"const": ["text"]})

Messages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]


class ChatCompletionRequest(_Strict):
    """Body of a chat completion.

    Lists are validated up to their first fault: there is no use in a million of them.
    """

    messages: Messages
    model: str | None = Field(None, description="ignored: there is one model here")
    temperature: Number = Field(1.0, ge=0, le=2)
    top_p: Number = Field(1.0, ge=0, le=1)
    presence_penalty: Number = Field(0.0, ge=-2, le=2)
    frequency_penalty: Number = Field(0.0, ge=-2, le=2)
    max_tokens: Count | None = Field(
        None, description="clamped to the context window; the rest of it, to a limit, by default"
    )
    max_completion_tokens: Count | None = Field(None, description="a newer name of max_tokens")
    seed: Annotated[int, Field(ge=-INT64, lt=INT64), IsNumber] | None = None
    stop: Stops = []
    stream: Flag = False
    stream_options: StreamOptions | None = None
    n: Integer = Field(1, ge=1, le=128)
    logprobs: Flag = False
    top_logprobs: Annotated[int, Field(ge=0, le=20), IsNumber] | None = Field(
        None, description="needs logprobs"
    )
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100), IsNumber]] = Field(
        {}, max_length=1024, description="from token ids to what is added to their logits"
    )
    response_format: ResponseFormatOrName | None = None
    # OpenAI's, of which the first group changes nothing here and the second cannot be served.
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None
    tools: Annotated[list[Any] | None, NOTHING] = None
    tool_choice: Annotated[Any, NONE] = None
    functions: Annotated[list[Any] | None, NOTHING] = None
    function_call: Annotated[Any, NONE] = None
    modalities: Annotated[list[str], Field(max_length=16, fail_fast=True), TEXT] | None = None
    audio: Annotated[Any, NULL] = None
    moderation: Annotated[Any, NULL] = None
    prediction: Annotated[Any, NULL] = None
    reasoning_effort: Annotated[Any, NONE] = None
    verbosity: Annotated[Any, NULL] = None
    web_search_options: Annotated[Any, NULL] = None
    # The engine's own.
    top_k: Integer = Field(0, ge=-1, description="0 or -1 keeps all tokens")
    min_p: Number = Field(0.0, ge=0, le=1)
    repetition_penalty: Number = Field(1.0, ge=0.01, le=10)
    ignore_eos: Flag = False
    min_tokens: Integer = Field(0, ge=0)
    guided_regex: Annotated[str, Field(min_length=1)] | None = None
    guided_choice: Annotated[list[str], Field(min_length=1, max_length=1024)] | None = None
    guided_grammar: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="in Lark's or GBNF's syntax; begins at its rule start or root"
    )
    stop_token_ids: list[Annotated[int, Field(ge=0), IsNumber]] = Field(
        [], max_length=1024, fail_fast=True
    )


# Names that are no extra parameters in Azure's sense: its own, and OpenAI's.
EXTRAS = {
    *("top_k", "min_p", "repetition_penalty", "ignore_eos", "min_tokens", "stop_token_ids"),
    *("guided_regex", "guided_choice", "guided_grammar"),
}
KNOWN = set(ChatCompletionRequest.model_fields) - EXTRAS


class TokenizeRequest(_Strict):
    """What to count tokens of: a conversation, as chat completions take it, or a plain text."""

    model: str | None = Field(None, description="ignored: there is one model here")
    messages: Messages | None = None
    prompt: str | None = None
    add_special_tokens: Flag = Field(True, description="whether a prompt gets its <s>")
    add_generation_prompt: Literal[True] = Field(
        True, description="conversations end where the model begins to speak"
    )
    return_token_strs: Flag = False
