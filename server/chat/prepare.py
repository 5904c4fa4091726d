"""From a valid request to a running completion, for routes and for the lines of a batch."""

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
    """A completion that the engine is computing. Read it once, streamed or whole; close the generation.

    Attributes:
        generation: the engine's side of it.
        envelope: what all its chunks have in common.
    """

    generation: model.Generation
    envelope: completions.Envelope
    _include_usage: bool
    _n: int

    def stream(self) -> AsyncIterator[bytes]:
        """Its chunks as JSON; raises a ModelError."""
        return completions.stream(self.generation, self.envelope, self._n, self._include_usage)

    async def complete(
        self, write_numbers: NumberWriter = json_numbers
    ) -> completions.FinishedCompletion:
        """All of it; raises a ModelError."""
        return await completions.complete(self.generation, self.envelope, self._n, write_numbers)


@dataclass(frozen=True)
class PreparedChat:
    """A request as the engine takes it, with its images; ``start`` may be tried again if it is refused."""

    _engine: model.AsyncEngine
    _messages: list[model.Message]
    _params: model.SamplingParams
    _envelope: completions.Envelope
    _include_usage: bool
    _caller: str

    async def start(self, admit: Callable[[int, int], None] | None = None) -> RunningCompletion:
        """Have the engine compute it; arguments and errors are those of ``AsyncEngine.generate``."""
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
    """Turn a request into what the engine takes, and fetch its images.

    Args:
        backend: has the engine.
        chat: the request.
        params: its sampling parameters.
        images: takes those of the request.
        salt: cached prefixes are shared between requests of the same salt.
        caller: who sends it; callers take turns.

    Raises:
        ApiError: a message that the model does not take, or no engine to take it.
        ModelError: see ``to_messages``.
    """
    engine, envelope = backend.engine, completions.Envelope(backend.info.name)
    messages = await to_messages(chat.messages, images, backend.settings.max_images)
    include_usage = chat.stream_options is not None and chat.stream_options.include_usage
    params = replace(params, cache_salt=salt)
    return PreparedChat(engine, messages, params, envelope, include_usage, caller)
