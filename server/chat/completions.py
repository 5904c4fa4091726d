"""From text deltas to chat completions: the chunks of a stream, or the whole as a fold of the same deltas.

Knows the wire's shapes, nothing of HTTP.
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
    """What every chunk of a completion repeats."""

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
    """The chunks of a stream as JSON: a role chunk for each choice, text, and how each one ended.

    Usage stands in the last chunk, or with ``include_usage`` in a further one without choices; all
    others then say that theirs is null, as OpenAI's do.
    """

    def dumped(
        choices: list[ChunkChoice], usage: Usage | None = None, logprobs: bytes = b""
    ) -> bytes:
        hidden = {"usage"} if usage is None and not include_usage else None
        text = envelope.chunk(choices, usage).model_dump_json(exclude=hidden).encode()
        if not logprobs:
            return text
        begin, key, end = text.partition(b'"logprobs":')  # a string has no such quotes
        return begin + key + b'{"content":[' + logprobs + b"]}" + end.removeprefix(b"null")

    for index in range(n):
        yield dumped([ChunkChoice(index=index, delta=Delta(role="assistant"))])
    unfinished = n
    async for delta in generation:
        if delta.text or delta.logprobs:
            choice = ChunkChoice(index=delta.index, delta=Delta(content=delta.text))
            yield dumped([choice], logprobs=logprobs_json(delta.logprobs, pydantic_numbers))
        if delta.logprobs:
            await asyncio.sleep(0)  # many may have gathered
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
    """A whole completion, whose log probabilities are JSON already.

    Attributes:
        completion: the rest of it.
        logprobs: of each choice; each piece has one token or several, and a comma before them if
            it is not the first.
    """

    completion: ChatCompletion
    logprobs: list[list[bytes]]

    def pieces(self) -> Iterator[bytes]:
        """Its JSON in pieces, which together are what dumping all of it would give."""
        whole = self.completion.model_dump()
        choices, whole["choices"] = whole["choices"], []
        begin, mark, end = _dumped(whole).partition(b'"choices":[')  # a string has no such quotes
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
    """The whole completion; log probabilities are written as ``write_numbers`` does."""
    texts: list[list[str]] = [[] for _ in range(n)]
    logprobs: list[list[bytes]] = [[] for _ in range(n)]
    async for delta in generation:
        texts[delta.index].append(delta.text)
        if delta.logprobs:
            own = logprobs[delta.index]
            own.append((b"," if own else b"") + logprobs_json(delta.logprobs, write_numbers))
            await asyncio.sleep(0)  # many may have gathered
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
    """Dumped as FastAPI dumps a JSON response."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _usage(generation: model.Generation) -> Usage:
    return Usage(
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=generation.completion_tokens,
        total_tokens=generation.prompt_tokens + generation.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=generation.cached_tokens),
    )
