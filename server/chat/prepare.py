"""Starts completions for validated requests, of routes and of batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import model
from server.chat import completions
from server.chat.logprobs import NumberWriter, json_numbers
from server.chat.parse import to_messages
from server.images.urls import Images
from server.schemas.requests import ChatCompletionRequest
from server.service import Backend


@dataclass(frozen=True)
class RunningCompletion:
    """A completion in progress. Read it once, streamed or whole, and close the generation.

    Attributes:
        generation: the engine's generation.
        envelope: the fields that all chunks share.
    """

    generation: model.Generation
    envelope: completions.Envelope
    _include_usage: bool
    _n: int

    def stream(self) -> AsyncIterator[bytes]:
        """Stream its chunks as JSON; raises a ModelError."""
        return completions.stream(self.generation, self.envelope, self._n, self._include_usage)

    async def complete(
        self, write_numbers: NumberWriter = json_numbers
    ) -> completions.FinishedCompletion:
        """Collect all of it; raises a ModelError."""
        return await completions.complete(self.generation, self.envelope, self._n, write_numbers)


@dataclass(frozen=True)
class PreparedChat:
    """A request that is ready for the engine; ``start`` can be retried if the engine is overloaded."""

    _engine: model.AsyncEngine
    _messages: list[model.Message]
    _params: model.SamplingParams
    _envelope: completions.Envelope
    _include_usage: bool
    _caller: str

    async def start(self, admit: Callable[[int, int], None] | None = None) -> RunningCompletion:
        """Start the completion; see ``AsyncEngine.generate`` for ``admit`` and errors."""
        generation = await self._engine.generate(self._messages, self._params, admit, self._caller)
        return RunningCompletion(generation, self._envelope, self._include_usage, self._params.n)


async def prepare(
    backend: Backend,
    chat: ChatCompletionRequest,
    params: model.SamplingParams,
    images: Images,
    salt: str,
    caller: str = "",
) -> PreparedChat:
    """Convert a request for the engine and fetch its images.

    Args:
        backend: holds the engine.
        chat: the request.
        params: its sampling parameters.
        images: collects the request's images.
        salt: cached prefixes are shared only between requests with the same salt.
        caller: the caller's name, for fair scheduling.

    Raises:
        ApiError: a message is not supported, or the engine is not ready.
        ModelError: see ``to_messages``.
    """
    engine, envelope = backend.engine, completions.Envelope(backend.info.name)
    messages = await to_messages(chat.messages, images, backend.settings.max_images)
    include_usage = chat.stream_options is not None and chat.stream_options.include_usage
    params = replace(params, cache_salt=salt)
    return PreparedChat(engine, messages, params, envelope, include_usage, caller)
