"""The engine behind asyncio: one thread owns the device, a small pool prepares inputs.

Requests go in through an inbox; each step's deltas come back to the event loop in one call. Closing
a generation, or the task that reads it, aborts it at the next step boundary.
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
from model.phi3v.inputs.processing import PromptInputs

logger = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.0005  # seconds

T = TypeVar("T")


class AsyncEngine:
    """Runs an ``Engine`` on its own thread.

    Args:
        engine: to be used by no one else from now on.
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
        # The engine's thread asks for the GIL a few times in a step; a thread that computes in Python
        # gives it up after this long, by default 5 ms each time.
        sys.setswitchinterval(min(SWITCH_INTERVAL, sys.getswitchinterval()))
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stats(self) -> Stats:
        """What the engine is doing and has done."""
        return self._engine.stats()

    def describe(self) -> Diagnostics:
        """What the engine runs on and holds. Event loop only."""
        return replace(
            self._engine.describe(),
            requests=len(self._generations),
            in_flight=self._in_flight.sequences,
            in_flight_tokens=self._in_flight.tokens,
            in_flight_bytes=self._in_flight.bytes,
        )

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus answer, in tokens."""
        return self._engine.config.max_model_len

    @property
    def longest_ratio(self) -> float:
        """Of an image's long side to its short one."""
        return self._engine.processor.image_processor.longest_ratio

    @property
    def is_busy(self) -> bool:
        """Whether any request is in flight."""
        return self._in_flight.sequences > 0

    @property
    def is_alive(self) -> bool:
        """Whether requests can be served."""
        return not self._ended and self._thread.is_alive()

    async def generate(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        admit: Callable[[int, int], None] | None = None,
        caller: str = "",
    ) -> Generation:
        """Prepare a request and queue it; returns once its prompt is known to be good.

        Args:
            messages: the conversation.
            params: how to answer.
            caller: who asks; callers take turns.
            admit: called with the prompt's tokens, and the most that the answers may have together,
                before any of it is computed; what it raises is raised.

        Raises:
            RequestError: the messages or parameters cannot be served.
            OverloadedError: too many requests wait.
            TookTooLongError: it took longer than an answer may take.
            EngineDeadError: the engine has ended.
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
            self._require_alive()  # it may have ended meanwhile, and have told those who waited
            if admit is not None:
                admit(len(inputs.token_ids), params.n * longest)
        except BaseException:
            generation.close()
            raise
        self._inbox.put(partial(self._add, request_id, inputs, params, arrived, grammar))
        return generation

    async def tokenize(self, messages: Sequence[Message], caller: str = "") -> list[int]:
        """The prompt that ``generate`` would compute on; raises the same errors."""
        return (await self._prepare_only(self._prompt(messages, caller))).token_ids

    async def tokenize_text(self, text: str, special: bool, caller: str = "") -> list[int]:
        """Token ids of a text on its own; ``special`` adds what every prompt begins with (``<s>``).

        Raises:
            ContextLengthError: it does not fit into the context window.
            OverloadedError: too many requests wait.
            EngineDeadError: the engine has ended.
        """
        work = partial(self._engine.processor.encode_text, text, special, self.max_model_len - 1)
        return await self._prepare_only(self._texts.run(caller, work))

    def token_text(self, token_id: int) -> str:
        """The token as a reader may see it."""
        return self._engine.processor.token_text(token_id)

    async def _inputs(
        self, messages: Sequence[Message], params: SamplingParams, caller: str
    ) -> tuple[PromptInputs, Grammar | None]:
        grammar: Grammar | None = None
        if params.grammar is not None:
            unwanted = threading.Event()
            work = partial(self._engine.compile, params, unwanted)
            grammar = await self._grammars.run(caller, work, unwanted)
        return await self._prompt(messages, caller), grammar

    async def _prompt(self, messages: Sequence[Message], caller: str) -> PromptInputs:
        work = partial(self._engine.processor.draft, messages, self.max_model_len - 1)
        draft = await self._texts.run(caller, work)
        return await self._images.run(caller, draft.finish) if draft.has_image else draft.finish()

    async def _prepare(self, n: int, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work``; from then on ``n`` more sequences are in flight.

        Raises:
            RequestError: those would be too many even if there were no others.
            OverloadedError: those would be too many.
            EngineDeadError: the engine has ended.
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
        """Do ``work`` as ``_prepare`` does, for a request that generates nothing."""
        result = await self._prepare(1, work)
        self._in_flight.remove(1)
        return result

    def _require_alive(self) -> None:
        if not self.is_alive:
            raise EngineDeadError()

    def shutdown(self) -> None:
        """End the thread after its current step; unfinished generations raise."""
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
        """The engine thread: commands, then a step, until told to stop."""
        try:
            while self._take_commands():
                if self._engine.has_work:
                    self._deliver(self._engine.step())
        except BaseException:  # whatever it is, those who wait must hear of it
            logger.exception("the engine thread failed")
        finally:
            self._ended = True
            self._call_on_loop(self._fail_all)

    def _die(self) -> None:
        """Take no more requests, and end those that run."""
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
    ) -> None:
        """Queue a request; a fault in that is its own."""
        try:
            self._engine.add(request_id, inputs, params, arrived, grammar)
        except Exception:
            logger.exception("failed to queue a request")
            self._engine.abort(request_id)
            self._deliver([Output((request_id, 0), StepFailedError())])

    def _take_commands(self) -> bool:
        """Run what is in the inbox, waiting for it when there is nothing else to do."""
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
