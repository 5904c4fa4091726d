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
from typing import Literal, cast

from pydantic_core import to_json

import model
from server.chat.answers import Answer
from server.chat.logprobs import NumberWriter, logprobs_json, pydantic_numbers
from server.schemas.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    PromptTokensDetails,
    Usage,
)

# Which chunks of a stream have the usage: the last one, one of its own as with OpenAI, or all.
UsageIn = Literal["last", "own", "all"]


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
    generation: model.Generation, envelope: Envelope, answers: list[Answer], usage_in: UsageIn
) -> AsyncIterator[bytes]:
    """Yield the chunks of a stream as JSON: a role chunk for each answer, pieces, and finish reasons.

    If the usage has a chunk of its own, that has no choices, and in all others it is null or, with
    ``all``, the usage so far.
    """

    def dumped(
        choices: list[ChunkChoice], usage: Usage | None = None, logprobs: bytes = b""
    ) -> bytes:
        if usage_in == "all":
            usage = _usage(generation, read)
        hidden = {"usage"} if usage is None and usage_in == "last" else None
        text = envelope.chunk(choices, usage).model_dump_json(exclude=hidden).encode()
        if not logprobs:
            return text
        begin, key, end = text.partition(b'"logprobs":')  # quotes in a string are escaped
        return begin + key + b'{"content":[' + logprobs + b"]}" + end.removeprefix(b"null")

    # Most chunks are a piece of text, so only that is serialized for each.
    around: dict[int, tuple[bytes, bytes]] = {}
    if usage_in != "all":
        for index in range(len(answers)):
            empty = dumped([ChunkChoice(index=index, delta=Delta(content=""))])
            before, _, after = empty.partition(b'"content":""')  # quotes in a string are escaped
            around[index] = (before + b'"content":', after)

    read = 0  # tokens
    for index, answer in enumerate(answers):
        yield dumped([ChunkChoice(index=index, delta=answer.opening())])
    unfinished = len(answers)
    async for delta in generation:
        answer = answers[delta.index]
        read += len(delta.token_ids)
        logprobs = logprobs_json(delta.logprobs, pydantic_numbers)
        for piece in answer.add(delta.text) or ([answer.nothing()] if logprobs else []):
            if piece.content and not logprobs and delta.index in around:
                before, after = around[delta.index]
                yield before + to_json(piece.content) + after
                continue
            yield dumped([ChunkChoice(index=delta.index, delta=piece)], logprobs=logprobs)
            logprobs = b""
        if delta.logprobs:
            await asyncio.sleep(0)  # let others run between large deltas
        if delta.finish_reason is not None:
            unfinished -= 1
            reason = answer.finish_reason(delta.finish_reason)
            end = ChunkChoice(index=delta.index, delta=answer.nothing(), finish_reason=reason)
            inline = unfinished == 0 and usage_in == "last"
            yield dumped([end], _usage(generation, read) if inline else None)
    if usage_in != "last":
        yield dumped([], _usage(generation, read))


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
    generation: model.Generation,
    envelope: Envelope,
    answers: list[Answer],
    write_numbers: NumberWriter,
) -> FinishedCompletion:
    """Collect the whole completion; ``write_numbers`` formats the log probabilities."""
    logprobs: list[list[bytes]] = [[] for _ in answers]
    async for delta in generation:
        answers[delta.index].add(delta.text)
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
                message=answer.message(),
                finish_reason=answer.finish_reason(reasons[index]),
                logprobs=None,
            )
            for index, answer in enumerate(answers)
        ],
        usage=_usage(generation, generation.completion_tokens),
    )
    return FinishedCompletion(completion, logprobs)


def _dumped(value: object) -> bytes:
    """Serialize as FastAPI serializes JSON responses."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _usage(generation: model.Generation, completion_tokens: int) -> Usage:
    return Usage(
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=generation.prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=generation.cached_tokens),
    )
