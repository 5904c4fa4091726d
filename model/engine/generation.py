"""The answers to one request as their reader gets them, on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import chain
from typing import Literal

from model.engine.request import FinishReason, TextDelta
from model.errors import ModelError

MOST_ALTERNATIVES = 1000  # described in one delta, but for those of a step


class Generation:
    """The answers to one request as they come; iterate it once, and close it.

    A reader slower than the model gets what has gathered of an answer in one delta, or in several
    where there are many log probabilities; what waits for it is never more than the answers.

    Attributes:
        prompt_tokens: length of the prompt, image included.
        cached_tokens: how many of them were found computed; known from the first delta on.
        completion_tokens: of all answers so far, read or not.
        first_token_at: when the first of them came, by ``time.perf_counter``; None before.
        finish_reasons: of each answer in order of index; ``abort`` for what has not ended by itself.
        error: what ended it, if something did.
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
        self._gathered: dict[int, list[TextDelta]] = {}  # by answer, the longest waiting first
        self._news = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        return self

    async def __anext__(self) -> TextDelta:
        """The next delta of any of the answers; raises the ModelError that ended one."""
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
        """The next deltas of an answer, as many as a reader can deal with without a pause."""
        gathered = self._gathered.pop(index)
        end = alternatives = 0
        while end < len(gathered) and alternatives < MOST_ALTERNATIVES:
            alternatives += sum(len(token.token_ids) for token in gathered[end].logprobs)
            end += 1
        if end < len(gathered):
            self._gathered[index] = gathered[end:]
        return gathered[:end]

    def put(self, result: TextDelta | ModelError) -> None:
        """Called on the event loop for each delta, or the error that ends the generation."""
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
        """End with ``error`` if it has not been closed by ``when``, in the event loop's time."""
        self._timer = asyncio.get_running_loop().call_at(when, self.put, error)

    def close(self) -> None:
        """Abort what is not finished; may be called again."""
        if self._timer is not None:
            self._timer.cancel()
        self._close()


def _joined(deltas: list[TextDelta]) -> TextDelta:
    """One delta for several of the same answer, in order."""
    if len(deltas) == 1:
        return deltas[0]
    return replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(chain.from_iterable(delta.token_ids for delta in deltas)),
        logprobs=tuple(chain.from_iterable(delta.logprobs for delta in deltas)),
    )
