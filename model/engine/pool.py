"""Threads that prepare requests, and callers that take turns at them.

Each kind of work has a pool of its own, so that none waits for another kind. A caller with much to
do waits for its own work; others are let in between.
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
    """So many seats; where all are taken, callers get the next free one in turn. Event loop only."""

    def __init__(self, seats: int) -> None:
        self._free = seats
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def taken(self, caller: str) -> AsyncIterator[None]:
        """Have a seat."""
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
                self._pass_on()  # it had just been given the seat
            raise

    def _pass_on(self) -> None:
        """Give a seat to the caller that has waited longest since it had one."""
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
    """Threads for one kind of work. Used on the event loop.

    Args:
        name: of its threads.
    """

    def __init__(self, name: str) -> None:
        # At least two: work that takes long leaves one to others.
        workers = max(2, (os.cpu_count() or 1) // 2)
        self._threads = ThreadPoolExecutor(workers, name, initializer=_step_back)
        self._turns = Turns(workers)

    async def run(
        self, caller: str, work: Callable[[], T], unwanted: threading.Event | None = None
    ) -> T:
        """Do ``work`` on a thread when it is the caller's turn.

        A call that is cancelled ends when the work has ended, so that what it holds counts until
        then.

        Args:
            caller: whose work it is.
            work: raises what is raised.
            unwanted: set when the call is cancelled, for work that can stop early.
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
                    running.exception()  # nobody asks for it
                raise

    def close(self) -> None:
        """End the threads once their work is done."""
        self._threads.shutdown(cancel_futures=True)


def _step_back() -> None:
    """Make this thread's work on images yield to the steps of running answers, where that is allowed."""
    torch.get_num_threads()  # which a thread's first use of torch would otherwise set again
    threadpool_limits(1, user_api="openmp")
    if sys.platform == "linux":  # where a thread has a priority of its own
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # sandboxes refuse it, or system calls altogether
            os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, 0) + 5, 19))
        with contextlib.suppress(OSError):
            # Wakes without pushing in.
            os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
