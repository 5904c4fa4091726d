"""Thread pools that prepare requests, shared fairly between callers.

Each kind of work has its own pool, so that it never waits for other kinds. Callers take turns, so that
one with many requests does not delay the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

T = TypeVar("T")


class Turns:
    """A semaphore whose waiting callers take turns (round robin). Event loop only."""

    def __init__(self, seats: int) -> None:
        self._free = seats
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def taken(self, caller: str) -> AsyncIterator[None]:
        """Hold a seat for the duration of the context."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(caller)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, caller: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._pass_on()  # it has just received the seat
            raise

    def _pass_on(self) -> None:
        """Give the seat to the caller whose last turn is longest ago."""
        while self._waiting:
            caller, turns = next(iter(self._waiting.items()))
            turn = turns.popleft()
            if not turns:
                del self._waiting[caller]
            if not turn.cancelled():
                if turns:
                    self._waiting.move_to_end(caller)
                turn.set_result(None)
                return
        self._free += 1


class Pool:
    """A thread pool for one kind of work. Used on the event loop.

    Args:
        name: prefix of the threads' names.
    """

    def __init__(self, name: str) -> None:
        # At least two, so that slow work leaves a thread for others.
        workers = max(2, (os.cpu_count() or 1) // 2)
        self._threads = ThreadPoolExecutor(workers, name, initializer=_step_back)
        self._turns = Turns(workers)

    async def run(
        self, caller: str, work: Callable[[], T], unwanted: threading.Event | None = None
    ) -> T:
        """Run ``work`` in a thread when it is the caller's turn.

        A cancelled call returns only when the work has ended, so that it counts as in flight until
        then.

        Args:
            caller: who the work is for.
            work: its exceptions propagate.
            unwanted: set when the call is cancelled, so that work can stop early.
        """
        async with self._turns.taken(caller):
            running = asyncio.wrap_future(self._threads.submit(work))
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if unwanted is not None:
                    unwanted.set()
                while not running.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait([running])
                if not running.cancelled():
                    running.exception()  # marks the exception as retrieved
                raise

    def close(self) -> None:
        """End the threads after their current work."""
        self._threads.shutdown(cancel_futures=True)


def _step_back() -> None:
    """Lower this thread's priority below that of the engine's steps, if the system permits it."""
    torch.get_num_threads()  # otherwise the thread's first use of torch resets it
    threadpool_limits(1, user_api="openmp")
    if sys.platform == "linux":  # where threads have their own priority
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # sandboxes may forbid it
            os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, 0) + 5, 19))
        with contextlib.suppress(OSError):
            # A batch thread does not preempt others when it wakes.
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
