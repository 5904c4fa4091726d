"""Bodies of answers, as both dialects share them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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


class Tokenized(BaseModel):
    """Answer of ``POST /tokenize``.

    Attributes:
        count: of tokens; equal to ``usage.prompt_tokens`` of the same conversation.
        max_model_len: longest prompt plus answer, in tokens.
        tokens: their ids; -1 at each position that the image takes.
        token_strs: their texts, when asked for.
    """

    model_config = ConfigDict(protected_namespaces=())

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Health(BaseModel):
    """Answer of ``GET /health``."""

    status: Literal["loading", "ready", "draining", "dead"]
