"""Starts completions for validated requests, of routes and of batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import model
from server.chat import completions
from server.chat.answers import Answer, CallAnswer, TextAnswer
from server.chat.logprobs import NumberWriter, json_numbers
from server.chat.messages import to_messages, wanted_crops
from server.chat.parse import ParsedChat
from server.chat.tools import ForcedCall, describe_functions
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
    _chat: ChatCompletionRequest
    _call: ForcedCall | None

    def stream(self) -> AsyncIterator[bytes]:
        """Stream its chunks as JSON; raises a ModelError."""
        options = self._chat.stream_options
        usage: completions.UsageIn = "last"
        if options is not None and options.include_usage:
            usage = "all" if options.continuous_usage_stats else "own"
        return completions.stream(self.generation, self.envelope, self.answers(), usage)

    async def complete(
        self, write_numbers: NumberWriter = json_numbers
    ) -> completions.FinishedCompletion:
        """Collect all of it; raises a ModelError."""
        return await completions.complete(
            self.generation, self.envelope, self.answers(), write_numbers
        )

    def answers(self) -> list[Answer]:
        """Readers of the generated text, one for each answer, that have read nothing."""
        call = self._call
        return [CallAnswer(call) if call else TextAnswer() for _ in range(self._chat.n)]


@dataclass(frozen=True)
class PreparedChat:
    """A request that is ready for the engine; ``start`` can be retried if the engine is overloaded."""

    _engine: model.AsyncEngine
    _messages: list[model.Message]
    _params: model.SamplingParams
    _envelope: completions.Envelope
    _chat: ChatCompletionRequest
    _call: ForcedCall | None
    _caller: str

    async def start(self, admit: Callable[[int, int], None] | None = None) -> RunningCompletion:
        """Start the completion; see ``AsyncEngine.generate`` for ``admit`` and errors."""
        generation = await self._engine.generate(self._messages, self._params, admit, self._caller)
        return RunningCompletion(generation, self._envelope, self._chat, self._call)


async def prepare(
    backend: Backend, parsed: ParsedChat, images: Images, salt: str, caller: str = ""
) -> PreparedChat:
    """Convert a request for the engine and fetch its images.

    Args:
        backend: holds the engine.
        parsed: the request.
        images: collects the request's images.
        salt: cached prefixes are shared only between requests with the same salt.
        caller: the caller's name, for fair scheduling.

    Raises:
        ApiError: a message is not supported, or the engine is not ready.
        ModelError: see ``to_messages``.
    """
    engine, envelope = backend.engine, completions.Envelope(backend.info.name)
    chat, call = parsed.request, parsed.call
    crops = wanted_crops(chat, engine)
    messages = await to_messages(chat.messages, images, backend.settings.max_images, crops)
    if call is not None:
        messages = describe_functions(messages, call)
    defaults = unset_defaults(chat, backend.info.default_parameters)
    params = replace(parsed.params, cache_salt=salt, **defaults)
    return PreparedChat(engine, messages, params, envelope, chat, call, caller)


def unset_defaults(chat: ChatCompletionRequest, defaults: Mapping[str, float]) -> dict[str, Any]:
    """The checkpoint's defaults for parameters that the request does not set."""
    given = set(chat.model_fields_set)
    if "max_completion_tokens" in given:
        given.add("max_tokens")
    return {name: value for name, value in defaults.items() if name not in given}
