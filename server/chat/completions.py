"""Turns text deltas into chat completions: chunks of a stream, or one whole completion.

Independent of HTTP.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import cast

import model
from server.chat.logprobs import NumberWriter, logprobs_json, pydantic_numbers
from server.schemas.responses import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    PromptTokensDetails,
    Usage,
)


@dataclass(frozen=True)
class Envelope:
    """The fields that all chunks of a completion share."""

    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
        """A chunk of this completion."""
        return ChatCompletionChunk(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage
        )


async def stream(
    generation: model.Generation, envelope: Envelope, n: int, include_usage: bool
) -> AsyncIterator[bytes]:
    """Yield the chunks of a stream as JSON: a role chunk for each choice, text, and finish reasons.

    The last chunk has the usage. With ``include_usage``, an additional chunk without choices has it, and
    in all others it is null, as with OpenAI.
    """

    def dumped(
        choices: list[ChunkChoice], usage: Usage | None = None, logprobs: bytes = b""
    ) -> bytes:
        hidden = {"usage"} if usage is None and not include_usage else None
        text = envelope.chunk(choices, usage).model_dump_json(exclude=hidden).encode()
        if not logprobs:
            return text
        begin, key, end = text.partition(b'"logprobs":')  # quotes in a string are escaped
        return begin + key + b'{"content":[' + logprobs + b"]}" + end.removeprefix(b"null")

    for index in range(n):
        yield dumped([ChunkChoice(index=index, delta=Delta(role="assistant"))])
    unfinished = n
    async for delta in generation:
        if delta.text or delta.logprobs:
            choice = ChunkChoice(index=delta.index, delta=Delta(content=delta.text))
            yield dumped([choice], logprobs=logprobs_json(delta.logprobs, pydantic_numbers))
        if delta.logprobs:
            await asyncio.sleep(0)  # let others run between large deltas
        if delta.finish_reason is not None:
            unfinished -= 1
            last = ChunkChoice(index=delta.index, delta=Delta(), finish_reason=delta.finish_reason)
            inline = unfinished == 0 and not include_usage
            usage = _usage(generation) if inline else None
            yield dumped([last], usage)
    if include_usage:
        yield dumped([], _usage(generation))


@dataclass(frozen=True)
class FinishedCompletion:
    """A whole completion with log probabilities in serialized form.

    Attributes:
        completion: everything except the log probabilities.
        logprobs: JSON pieces for each choice, each with one or more tokens; all but the first start
            with a comma.
    """

    completion: ChatCompletion
    logprobs: list[list[bytes]]

    def pieces(self) -> Iterator[bytes]:
        """Yield the completion's JSON in pieces."""
        whole = self.completion.model_dump()
        choices, whole["choices"] = whole["choices"], []
        begin, mark, end = _dumped(whole).partition(
            b'"choices":['
        )  # quotes in a string are escaped
        yield begin + mark
        for choice, logprobs in zip(choices, self.logprobs, strict=True):
            text = (b"," if choice["index"] else b"") + _dumped(choice)
            if not logprobs:
                yield text
                continue
            yield text.removesuffix(b"null}") + b'{"content":['
            yield from logprobs
            yield b"]}}"
        yield end


async def complete(
    generation: model.Generation, envelope: Envelope, n: int, write_numbers: NumberWriter
) -> FinishedCompletion:
    """Collect the whole completion; ``write_numbers`` formats the log probabilities."""
    texts: list[list[str]] = [[] for _ in range(n)]
    logprobs: list[list[bytes]] = [[] for _ in range(n)]
    async for delta in generation:
        texts[delta.index].append(delta.text)
        if delta.logprobs:
            own = logprobs[delta.index]
            own.append((b"," if own else b"") + logprobs_json(delta.logprobs, write_numbers))
            await asyncio.sleep(0)  # let others run between large deltas
    reasons = cast("list[model.FinishReason]", generation.finish_reasons)  # none was aborted
    completion = ChatCompletion(
        id=envelope.id,
        created=envelope.created,
        model=envelope.model,
        choices=[
            Choice(
                index=index,
                message=AnswerMessage(content="".join(texts[index])),
                finish_reason=reasons[index],
                logprobs=None,
            )
            for index in range(n)
        ],
        usage=_usage(generation),
    )
    return FinishedCompletion(completion, logprobs)


def _dumped(value: object) -> bytes:
    """Serialize as FastAPI serializes JSON responses."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _usage(generation: model.Generation) -> Usage:
    return Usage(
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=generation.completion_tokens,
        total_tokens=generation.prompt_tokens + generation.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=generation.cached_tokens),
    )
