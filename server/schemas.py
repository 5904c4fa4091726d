"""Bodies of requests and answers, as both dialects share them. Shapes and ranges only.

A request is validated after nulls and extra parameters are dealt with (``server.convert``), so here
a field is absent or has a value, and what is not declared is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

INT64 = 2**63


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        """A null is an absent field, at any depth."""
        if isinstance(value, dict):
            return {name: item for name, item in value.items() if item is not None}
        return value


def _no_boolean(value: Any) -> Any:
    """Python's booleans are numbers, JSON's are not."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number, not a boolean")
    return value


NotBoolean = BeforeValidator(_no_boolean)  # the last annotation, or bounds miss the JSON schema
Integer = Annotated[int, NotBoolean]
Number = Annotated[float, NotBoolean]
Count = Annotated[int, Field(ge=1), NotBoolean]


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


class AudioPart(BaseModel):
    """Audio, which clients may send and this model refuses."""

    type: Literal["input_audio"]
    input_audio: Any = None


def _part_kind(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return f"<{kind}>" if isinstance(kind, str) else None


# Tags show up in the paths of errors; spelled so that none is mistaken for a key of the body.
ContentPart = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[AudioPart, Tag("<input_audio>")],
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
    """One message. Keys that OpenAI's answers carry are taken back when they are null."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: str | None = None


class ResponseFormat(BaseModel):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class StreamOptions(_Strict):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatCompletionRequest(_Strict):
    """Body of a chat completion; numbers may also be sent as strings.

    Lists are validated up to their first fault: there is no use in a million of them.
    """

    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    model: str | None = None
    temperature: Number = Field(1.0, ge=0, le=2)
    top_p: Number = Field(1.0, ge=0, le=1)
    presence_penalty: Number = Field(0.0, ge=-2, le=2)
    frequency_penalty: Number = Field(0.0, ge=-2, le=2)
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64), NotBoolean] | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(
        [], max_length=32, fail_fast=True
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Integer = Field(1, ge=1, le=128)
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20), NotBoolean] | None = None
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100), NotBoolean]] = Field(
        {}, max_length=1024
    )
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    modalities: Annotated[list[str], Field(max_length=16, fail_fast=True)] | None = None
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None
    # The engine's own.
    top_k: Integer = Field(0, ge=-1, description="0 or -1 keeps all tokens")
    min_p: Number = Field(0.0, ge=0, le=1)
    repetition_penalty: Number = Field(1.0, ge=0.01, le=10)
    ignore_eos: bool = False
    min_tokens: Integer = Field(0, ge=0)
    stop_token_ids: list[Annotated[int, Field(ge=0), NotBoolean]] = Field(
        [], max_length=1024, fail_fast=True
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        """One string is a list of one, as in Azure's REST sample."""
        return [value] if isinstance(value, str) else value

    @field_validator("response_format", mode="before")
    @classmethod
    def _bare_format(cls, value: Any) -> Any:
        """Old Azure SDKs send the bare string."""
        return {"type": value} if isinstance(value, str) else value


# Names that are no extra parameters in Azure's sense: its own, and OpenAI's.
EXTRAS = {"top_k", "min_p", "repetition_penalty", "ignore_eos", "min_tokens", "stop_token_ids"}
KNOWN = set(ChatCompletionRequest.model_fields) - EXTRAS


class ModelInfo(BaseModel):
    """Answer of ``GET /info``."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_type: Literal["chat-completions"] = "chat-completions"
    model_provider_name: str


class ModelCard(BaseModel):
    """One entry of ``GET /v1/models``."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Answer of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class PromptTokensDetails(BaseModel):
    """How many tokens of the prompt did not have to be computed again."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(BaseModel):
    """A token the model might have chosen."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token it chose."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Log probabilities of an answer's tokens."""

    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    tool_calls: None = None


class Choice(BaseModel):
    """One of the answers."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """What a chunk adds; ``role`` only in the first one."""

    role: Literal["assistant"] | None = Field(None, exclude_if=lambda role: role is None)
    content: str = ""


class ChunkChoice(BaseModel):
    """The part of one answer in a chunk."""

    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: Logprobs | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a stream; ``usage`` is left out where it does not belong."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
