"""The engine behind asyncio: one thread owns the device, and thread pools prepare inputs.

Requests enter through an inbox; each step's deltas return to the event loop in one call. Closing a
generation, or cancelling the task that reads it, aborts it before the next step.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from model.engine.engine import Engine
from model.engine.generation import Generation
from model.engine.grammars.grammar import Grammar
from model.engine.in_flight import Footprint, InFlight
from model.engine.pool import Pool
from model.engine.request import Output, SamplingParams
from model.engine.stats import Diagnostics, Stats
from model.errors import EngineDeadError, ModelError, StepFailedError, TookTooLongError
from model.phi3v.inputs.chat import Message
from model.phi3v.inputs.processing import PromptInputs, Seen, nothing_seen

logger = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.0005  # seconds

T = TypeVar("T")


class AsyncEngine:
    """Runs an ``Engine`` on its own thread.

    Args:
        engine: must not be used by anything else afterwards.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._texts, self._images, self._grammars = map(Pool, ("text", "image", "grammar"))
        self._loop = asyncio.get_running_loop()
        self._generations: dict[int, Generation] = {}  # event loop only
        self._ids = itertools.count()
        self._in_flight = InFlight(engine.config)  # event loop only
        self._ended = False
        # The engine thread takes the GIL several times per step, and would wait up to 5 ms (the
        # default switch interval) each time for a thread that runs Python code.
        sys.setswitchinterval(min(SWITCH_INTERVAL, sys.getswitchinterval()))
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stats(self) -> Stats:
        """Current state and totals."""
        return self._engine.stats()

    def describe(self) -> Diagnostics:
        """The implementations in use, and what the engine holds. Event loop only."""
        return replace(
            self._engine.describe(),
            requests=len(self._generations),
            in_flight=self._in_flight.sequences,
            in_flight_tokens=self._in_flight.tokens,
            in_flight_bytes=self._in_flight.bytes,
        )

    @property
    def max_model_len(self) -> int:
        """Longest sequence (prompt and answer), in tokens."""
        return self._engine.config.max_model_len

    @property
    def max_num_seqs(self) -> int:
        """Maximum number of sequences in a step."""
        return self._engine.config.max_num_seqs

    @property
    def longest_ratio(self) -> float:
        """Largest supported aspect ratio of an image, long side to short side."""
        return self._engine.processor.image_processor.longest_ratio

    @property
    def num_crops(self) -> int:
        """Maximum number of crops of an image, beside the global view."""
        return self._engine.processor.image_processor.num_crops

    @property
    def is_busy(self) -> bool:
        """Whether any request is in flight."""
        return self._in_flight.sequences > 0

    @property
    def is_alive(self) -> bool:
        """Whether the engine accepts requests."""
        return not self._ended and self._thread.is_alive()

    async def generate(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        admit: Callable[[int, int], None] | None = None,
        caller: str = "",
    ) -> Generation:
        """Prepare and queue a request; returns when its prompt is valid.

        Args:
            messages: the conversation.
            params: sampling parameters.
            caller: who sent the request; callers take turns.
            admit: called before anything is computed, with the number of prompt tokens and the
                maximum number of tokens of all answers; its exceptions propagate.

        Raises:
            RequestError: the messages or parameters cannot be served.
            OverloadedError: too many requests are in flight.
            TookTooLongError: preparation exceeded the request timeout.
            EngineDeadError: the engine has stopped.
        """
        arrived = time.perf_counter()
        self._engine.check(params)
        limit = self._engine.config.request_timeout
        deadline = self._loop.time() + limit
        inputs, grammar = await self._prepare(params.n, self._inputs(messages, params, caller))
        longest = self._engine.config.longest_answer(len(inputs.token_ids), params.max_tokens)
        try:
            footprint = Footprint.of(inputs, params, longest)
            self._in_flight.hold(footprint)
        except ModelError:
            self._in_flight.remove(params.n)
            raise
        request_id = next(self._ids)
        generation = Generation(
            footprint.tokens, params.n, partial(self._close, request_id, params.n, footprint)
        )
        generation.fail_at(deadline, TookTooLongError(limit))
        self._generations[request_id] = generation
        try:
            self._require_alive()  # it may have stopped meanwhile, before this generation existed
            if admit is not None:
                admit(len(inputs.token_ids), params.n * longest)
        except BaseException:
            generation.close()
            raise
        self._inbox.put(partial(self._add, request_id, inputs, params, arrived, grammar, caller))
        return generation

    async def tokenize(self, messages: Sequence[Message], caller: str = "") -> list[int]:
        """Token ids of the prompt that ``generate`` would use; raises the same errors."""
        return (await self._prepare_only(self._prompt(messages, caller, nothing_seen))).token_ids

    async def tokenize_text(self, text: str, special: bool, caller: str = "") -> list[int]:
        """Token ids of a plain text; ``special`` prepends the tokens that start every prompt (``<s>``).

        Raises:
            ContextLengthError: the text does not fit into the context window.
            OverloadedError: too many requests are in flight.
            EngineDeadError: the engine has stopped.
        """
        work = partial(self._engine.processor.encode_text, text, special, self.max_model_len - 1)
        return await self._prepare_only(self._texts.run(caller, work))

    async def detokenize(self, token_ids: Sequence[int], caller: str = "") -> str:
        """The text of tokens; see ``Processor.decode``.

        Raises:
            RequestError: an id is not in the vocabulary.
            OverloadedError: too many requests are in flight.
            EngineDeadError: the engine has stopped.
        """
        work = partial(self._engine.processor.decode, token_ids)
        return await self._prepare_only(self._texts.run(caller, work))

    def token_text(self, token_id: int) -> str:
        """The token's displayable text."""
        return self._engine.processor.token_text(token_id)

    async def _inputs(
        self, messages: Sequence[Message], params: SamplingParams, caller: str
    ) -> tuple[PromptInputs, Grammar | None]:
        grammar: Grammar | None = None
        if params.grammar is not None:
            unwanted = threading.Event()
            work = partial(self._engine.compile, params, unwanted)
            grammar = await self._grammars.run(caller, work, unwanted)
        keep = self._engine.config.kept_prompt(params.truncate_prompt_tokens, params.max_tokens)
        seen = self._engine.seen(params.cache_salt)
        return await self._prompt(messages, caller, seen, keep), grammar

    async def _prompt(
        self, messages: Sequence[Message], caller: str, seen: Seen, keep: int | None = None
    ) -> PromptInputs:
        work = partial(self._engine.processor.draft, messages, self.max_model_len - 1, keep)
        draft = await self._texts.run(caller, work)
        if not draft.images:
            return draft.finish()
        return await self._images.run(caller, partial(draft.finish, seen))

    async def _prepare(self, n: int, work: Coroutine[Any, Any, T]) -> T:
        """Count ``n`` more sequences as in flight and run ``work``; an error takes them out again.

        Raises:
            RequestError: ``n`` alone exceeds the limit.
            OverloadedError: too many sequences are in flight.
            EngineDeadError: the engine has stopped.
        """
        try:
            self._require_alive()
            self._in_flight.add(n)
        except BaseException:
            work.close()
            raise
        seconds = self._engine.config.request_timeout
        time_limit = asyncio.timeout(seconds)
        try:
            async with time_limit:
                return await work
        except BaseException as error:
            self._in_flight.remove(n)
            if isinstance(error, TimeoutError) and time_limit.expired():
                raise TookTooLongError(seconds) from error
            if isinstance(error, BrokenExecutor):
                logger.exception("failed to start threads")
                self._die()
                raise EngineDeadError() from error
            raise

    async def _prepare_only(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` like ``_prepare``, for a request that generates nothing."""
        result = await self._prepare(1, work)
        self._in_flight.remove(1)
        return result

    def _require_alive(self) -> None:
        if not self.is_alive:
            raise EngineDeadError()

    def shutdown(self) -> None:
        """Stop the engine thread after its current step; unfinished generations raise."""
        self._inbox.put(None)
        self._thread.join()
        for pool in (self._texts, self._images, self._grammars):
            pool.close()
        self._engine.close()

    def _close(self, request_id: int, n: int, footprint: Footprint) -> None:
        if self._generations.pop(request_id, None) is not None:
            self._in_flight.remove(n)
            self._in_flight.release(footprint)
            self._inbox.put(lambda: self._engine.abort(request_id))

    def _run(self) -> None:
        """The engine thread: run commands, then a step, until told to stop."""
        try:
            while self._take_commands():
                if self._engine.has_work:
                    self._deliver(self._engine.step())
        except BaseException:  # waiting generations must fail whatever happens
            logger.exception("the engine thread failed")
        finally:
            self._ended = True
            self._call_on_loop(self._fail_all)

    def _die(self) -> None:
        """Accept no more requests and fail all in flight."""
        self._ended = True
        self._fail_all()
        self._inbox.put(None)

    def _add(
        self,
        request_id: int,
        inputs: PromptInputs,
        params: SamplingParams,
        arrived: float,
        grammar: Grammar | None,
        caller: str,
    ) -> None:
        """Queue a request; an exception fails only this request."""
        try:
            self._engine.add(request_id, inputs, params, arrived, grammar, caller)
        except Exception:
            logger.exception("failed to queue a request")
            self._engine.abort(request_id)
            self._deliver([Output((request_id, 0), StepFailedError())])

    def _take_commands(self) -> bool:
        """Run the commands in the inbox; wait for one if the engine is idle."""
        while not self._engine.has_work or not self._inbox.empty():
            command = self._inbox.get()
            if command is None:
                return False
            command()
        return True

    def _deliver(self, outputs: list[Output]) -> None:
        if outputs:
            self._call_on_loop(lambda: self._put(outputs))

    def _put(self, outputs: list[Output]) -> None:
        for output in outputs:
            generation = self._generations.get(output.key[0])
            if generation is not None:
                generation.put(output.result)

    def _fail_all(self) -> None:
        for generation in list(self._generations.values()):
            generation.put(EngineDeadError())

    def _call_on_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            logger.debug("the event loop is closed; dropping results")
