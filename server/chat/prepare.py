"""From a request that is known to be valid to its answer, whoever asks: a route, or a line of a batch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import model
from server.chat import completions
from server.chat.logprobs import Numbers, as_json_writes
from server.chat.parse import to_messages
from server.images.urls import Images
from server.schemas.requests import ChatCompletionRequest
from server.schemas.responses import ChatCompletionChunk
from server.service import Backend


@dataclass(frozen=True)
class Answering:
    """An answer in the making; take it once, in one form, and close the generation.

    Attributes:
        envelope: what all its chunks have in common.
        include_usage: whether a stream tells the usage in a chunk of its own.
    """

    generation: model.Generation
    envelope: completions.Envelope
    include_usage: bool
    _n: int

    def stream(self) -> AsyncIterator[ChatCompletionChunk]:
        """Its chunks; raises a ModelError."""
        return completions.stream(self.generation, self.envelope, self._n, self.include_usage)

    async def complete(self, numbers: Numbers = as_json_writes) -> completions.Answer:
        """All of it; raises a ModelError."""
        return await completions.complete(self.generation, self.envelope, self._n, numbers)


@dataclass(frozen=True)
class Question:
    """A request as the engine takes it, with its images; may be begun until there is room for it."""

    _engine: model.AsyncEngine
    _messages: list[model.Message]
    _params: model.SamplingParams
    _envelope: completions.Envelope
    _include_usage: bool
    _caller: str

    async def begin(self, admit: Callable[[int, int], None] | None = None) -> Answering:
        """Have an answer made; arguments and errors are those of ``AsyncEngine.generate``."""
        generation = await self._engine.generate(self._messages, self._params, admit, self._caller)
        return Answering(generation, self._envelope, self._include_usage, self._params.n)


async def convert(
    backend: Backend,
    chat: ChatCompletionRequest,
    params: model.SamplingParams,
    images: Images,
    salt: str,
    caller: str = "",
) -> Question:
    """What the engine takes of a request; its images are fetched.

    Args:
        backend: makes the answer.
        chat: the request.
        params: how it wants its answers sampled.
        images: takes those of the request.
        salt: what is computed of the prompt is shared with requests of the same one.
        caller: who asks; callers take turns.

    Raises:
        ApiError: a message that the model does not take, or no engine to take it.
        ModelError: see ``to_messages``.
    """
    engine, envelope = backend.engine, completions.Envelope(backend.info.name)
    messages = await to_messages(chat.messages, images, backend.settings.max_images)
    include_usage = chat.stream_options is not None and chat.stream_options.include_usage
    params = replace(params, cache_salt=salt)
    return Question(engine, messages, params, envelope, include_usage, caller)
