"""The engine behind asyncio: one thread owns the device, a small pool prepares inputs.

Requests go in through an inbox; each step's deltas come back to the event loop in one call. Closing
a generation, or the task that reads it, aborts it at the next step boundary.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from model.engine.engine import Engine, Output
from model.engine.request import SamplingParams, TextDelta
from model.errors import EngineDeadError, ModelError, OverloadedError
from model.phi3v.chat import Message

logger = logging.getLogger(__name__)


class Generation:
    """The answers to one request as they come; iterate it once, and close it.

    Attributes:
        prompt_tokens: length of the prompt, image included.
    """

    def __init__(self, prompt_tokens: int, n: int, close: Callable[[], None]) -> None:
        self.prompt_tokens = prompt_tokens
        self._unfinished = n
        self._close = close
        self._results: asyncio.Queue[TextDelta | ModelError] = asyncio.Queue()

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        return self

    async def __anext__(self) -> TextDelta:
        """The next delta of any of the answers; raises the ModelError that ended one."""
        if self._unfinished == 0:
            raise StopAsyncIteration
        result = await self._results.get()
        if isinstance(result, ModelError):
            self._unfinished = 0
            raise result
        self._unfinished -= result.finish_reason is not None
        return result

    def put(self, result: TextDelta | ModelError) -> None:
        """Called on the event loop for each delta, or the error that ends the generation."""
        self._results.put_nowait(result)

    def close(self) -> None:
        """Abort what is not finished; may be called again."""
        self._close()


class AsyncEngine:
    """Runs an ``Engine`` on its own thread.

    Args:
        engine: to be used by no one else from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), "prepare")
        self._loop = asyncio.get_running_loop()
        self._generations: dict[int, Generation] = {}  # event loop only
        self._ids = itertools.count()
        self._in_flight = 0  # sequences prepared or unfinished, event loop only
        self._dead: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests can be served."""
        return self._dead is None and self._thread.is_alive()

    async def generate(self, messages: Sequence[Message], params: SamplingParams) -> Generation:
        """Prepare a request and queue it; returns once its prompt is known to be good.

        Raises:
            RequestError: the messages or parameters cannot be served.
            OverloadedError: too many requests wait.
            EngineDeadError: the engine has ended.
        """
        self._require_alive()
        self._engine.check(params)
        config = self._engine.config
        limit = config.max_num_seqs + config.max_waiting
        if self._in_flight + params.n > limit:
            raise OverloadedError(
                f"{self._in_flight} answers are in the making and the limit is {limit}; "
                "try again in a moment"
            )
        self._in_flight += params.n
        try:
            inputs = await self._loop.run_in_executor(
                self._pool, self._engine.processor, messages, config.max_model_len - 1
            )
        except BaseException:
            self._in_flight -= params.n
            raise
        request_id = next(self._ids)
        generation = Generation(
            len(inputs.token_ids), params.n, lambda: self._close(request_id, params.n)
        )
        self._generations[request_id] = generation
        if not self.is_alive:  # it ended meanwhile, and may already have told those who waited
            generation.close()
            self._require_alive()
        self._inbox.put(lambda: self._engine.add(request_id, inputs, params))
        return generation

    def _require_alive(self) -> None:
        if not self.is_alive:
            raise EngineDeadError(f"the engine has ended: {self._dead!r}")

    def shutdown(self) -> None:
        """End the thread after its current step; unfinished generations raise."""
        self._inbox.put(None)
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def _close(self, request_id: int, n: int) -> None:
        if self._generations.pop(request_id, None) is not None:
            self._in_flight -= n
            self._inbox.put(lambda: self._engine.abort(request_id))

    def _run(self) -> None:
        """The engine thread: commands, then a step, until told to stop."""
        error: Exception = EngineDeadError("the engine was shut down")
        try:
            while self._take_commands():
                if self._engine.has_work:
                    self._deliver(self._engine.step())
        except Exception as fatal:
            logger.exception("the engine thread ends")
            error = fatal
        self._dead = error
        self._call_on_loop(self._fail_all)

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
            generation.put(EngineDeadError(f"the engine has ended: {self._dead}"))

    def _call_on_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            logger.debug("the event loop is closed; nobody waits for the engine any more")
