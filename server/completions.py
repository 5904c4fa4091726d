"""From text deltas to answers: the chunks of a stream, and the whole answer as a fold of the same.

Knows the wire's shapes, nothing of HTTP.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import model
from server.schemas.answers import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    Logprobs,
    PromptTokensDetails,
    TokenLogprob,
    TopLogprob,
    Usage,
)


@dataclass(frozen=True)
class Envelope:
    """What every chunk of an answer repeats."""

    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
        """A chunk of this answer."""
        return ChatCompletionChunk(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage
        )


async def stream(
    generation: model.Generation, envelope: Envelope, n: int, include_usage: bool
) -> AsyncIterator[ChatCompletionChunk]:
    """The chunks of a stream: a role chunk for each answer, text, and how each one ended.

    Usage stands in the last chunk, or with ``include_usage`` in a further one without choices.
    """
    for index in range(n):
        yield envelope.chunk([ChunkChoice(index=index, delta=Delta(role="assistant"))])
    unfinished = n
    async for delta in generation:
        if delta.text or delta.logprobs:
            yield envelope.chunk(
                [
                    ChunkChoice(
                        index=delta.index,
                        delta=Delta(content=delta.text),
                        logprobs=_logprobs(delta.logprobs),
                    )
                ]
            )
        if delta.finish_reason is not None:
            unfinished -= 1
            last = ChunkChoice(index=delta.index, delta=Delta(), finish_reason=delta.finish_reason)
            inline = unfinished == 0 and not include_usage
            usage = _usage(generation) if inline else None
            yield envelope.chunk([last], usage)
    if include_usage:
        yield envelope.chunk([], _usage(generation))


async def complete(generation: model.Generation, envelope: Envelope, n: int) -> ChatCompletion:
    """The whole answer."""
    texts: list[list[str]] = [[] for _ in range(n)]
    logprobs: list[list[model.TokenLogprob]] = [[] for _ in range(n)]
    async for delta in generation:
        texts[delta.index].append(delta.text)
        logprobs[delta.index] += delta.logprobs
    reasons = cast("list[model.FinishReason]", generation.finish_reasons)  # none was aborted
    return ChatCompletion(
        id=envelope.id,
        created=envelope.created,
        model=envelope.model,
        choices=[
            Choice(
                index=index,
                message=AnswerMessage(content="".join(texts[index])),
                finish_reason=reasons[index],
                logprobs=_logprobs(tuple(logprobs[index])),
            )
            for index in range(n)
        ],
        usage=_usage(generation),
    )


def _usage(generation: model.Generation) -> Usage:
    return Usage(
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=generation.completion_tokens,
        total_tokens=generation.prompt_tokens + generation.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=generation.cached_tokens),
    )


def _logprobs(tokens: tuple[model.TokenLogprob, ...]) -> Logprobs | None:
    if not tokens:
        return None
    return Logprobs(content=[_token_logprob(token) for token in tokens])


def _token_logprob(token: model.TokenLogprob) -> TokenLogprob:
    chosen = token.chosen
    return TokenLogprob(
        token=chosen.text,
        logprob=chosen.logprob,
        bytes=list(chosen.bytes),
        top_logprobs=[
            TopLogprob(token=other.text, logprob=other.logprob, bytes=list(other.bytes))
            for other in token.top
        ],
    )
