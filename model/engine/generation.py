"""The stream of answers to one request, on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import chain
from typing import Literal

from model.engine.request import FinishReason, TextDelta
from model.errors import ModelError

MOST_ALTERNATIVES = 1000  # log probabilities in one delta, unless a single step has more


class Generation:
    """The answers to one request; iterate over it once, then close it.

    If the reader is slower than the model, deltas of an answer are joined into one, or several if they
    have many log probabilities. The backlog never exceeds the answers themselves.

    Attributes:
        prompt_tokens: length of the prompt, including the images.
        cached_tokens: number of prompt tokens from the prefix cache; known from the first delta on.
        completion_tokens: of all answers so far, read or not.
        first_token_at: when the first token arrived, by ``time.perf_counter``; None before.
        finish_reasons: of each answer, by index; ``abort`` until it finishes.
        error: the error that ended the generation, if any.
    """

    def __init__(self, prompt_tokens: int, n: int, close: Callable[[], None]) -> None:
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.first_token_at: float | None = None
        self.finish_reasons: list[FinishReason | Literal["abort"]] = ["abort"] * n
        self.error: ModelError | None = None
        self._unfinished = n
        self._close = close
        self._gathered: dict[int, list[TextDelta]] = {}  # by index, the longest waiting first
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        return self

    async def __anext__(self) -> TextDelta:
        """The next delta of any answer; raises the ModelError that ended the generation."""
        if self._unfinished == 0:
            raise StopAsyncIteration
        await self._news.wait()
        if not self._gathered:
            self._unfinished = 0
            assert self.error is not None
            raise self.error
        index = next(iter(self._gathered))
        delta = _joined(self._taken(index))
        if not self._gathered and self.error is None:
            self._news.clear()
        self._unfinished -= delta.finish_reason is not None
        return delta

    def _taken(self, index: int) -> list[TextDelta]:
        """Pop deltas of an answer, up to ``MOST_ALTERNATIVES`` log probabilities."""
        gathered = self._gathered.pop(index)
        end = alternatives = 0
        while end < len(gathered) and alternatives < MOST_ALTERNATIVES:
            alternatives += sum(len(token.token_ids) for token in gathered[end].logprobs)
            end += 1
        if end < len(gathered):
            self._gathered[index] = gathered[end:]
        return gathered[:end]

    def put(self, result: TextDelta | ModelError) -> None:
        """Add a delta, or the error that ends the generation. Event loop only."""
        if self.error is not None or "abort" not in self.finish_reasons:
            return
        if isinstance(result, ModelError):
            self.error = result
        else:
            self._gathered.setdefault(result.index, []).append(result)
            self._note(result)
        self._news.set()

    def _note(self, delta: TextDelta) -> None:
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        if delta.index == 0:
            self.cached_tokens = delta.cached_tokens
        self.completion_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            self.finish_reasons[delta.index] = delta.finish_reason

    def fail_at(self, when: float, error: ModelError) -> None:
        """Fail with ``error`` at ``when`` (event loop time), unless closed before."""
        self._timer = asyncio.get_running_loop().call_at(when, self.put, error)

    def close(self) -> None:
        """Abort unfinished answers; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        self._close()


def _joined(deltas: list[TextDelta]) -> TextDelta:
    """Join consecutive deltas of one answer."""
    if len(deltas) == 1:
        return deltas[0]
    return replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(chain.from_iterable(delta.token_ids for delta in deltas)),
        logprobs=tuple(chain.from_iterable(delta.logprobs for delta in deltas)),
    )
