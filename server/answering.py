"""From a request that is known to be valid to its answer, whoever asks: a route, or a line of a batch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import model
from server import completions
from server.convert import sampling_params, to_messages
from server.images import Images
from server.schemas.answers import ChatCompletion, ChatCompletionChunk
from server.schemas.requests import ChatCompletionRequest
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

    async def complete(self) -> ChatCompletion:
        """All of it; raises a ModelError."""
        return await completions.complete(self.generation, self.envelope, self._n)


async def begin(
    backend: Backend,
    chat: ChatCompletionRequest,
    images: Images,
    salt: str,
    admit: Callable[[int, int], None] | None = None,
) -> Answering:
    """Have an answer made.

    Args:
        backend: makes it.
        chat: the request.
        images: takes those of the request.
        salt: what is computed of the prompt is shared with requests of the same one.
        admit: as in ``AsyncEngine.generate``.

    Raises:
        ApiError: a message or parameter that the model does not take, or no engine to take it.
        ModelError: see ``AsyncEngine.generate`` and ``to_messages``.
    """
    engine, envelope = backend.engine, completions.Envelope(backend.info.name)
    params = replace(sampling_params(chat), cache_salt=salt)
    messages = await to_messages(chat.messages, images, backend.settings.max_images)
    generation = await engine.generate(messages, params, admit)
    include_usage = chat.stream_options is not None and chat.stream_options.include_usage
    return Answering(generation, envelope, include_usage, chat.n)
