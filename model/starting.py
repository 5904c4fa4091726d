"""From options to a loaded engine, in a process that is set up for it. Torch is imported on the way."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from model import hub
from model.engine.config import LoadOptions, ModelInfo
from model.errors import CheckpointError, ModelError
from model.phi3v.checkpoint import first_line

if TYPE_CHECKING:
    from model.engine.engine import Engine

logger = logging.getLogger(__name__)

DEMO = "demo"  # the name of the embedded checkpoint, wherever a model is named

T = TypeVar("T")


def set_environment() -> None:
    """Set variables that libraries read when they are imported, unless the user has set them."""
    # How long, in turns of a loop, the threads of torch's OpenMP library wait for work before they
    # sleep. The default, several milliseconds, takes the cores from everything else that runs here,
    # and from each other when the machine is busy; this is about 0.2 ms.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Whether the hub's client tells the hub what it runs in, for which it also contacts the hub when
    # there is nothing to download.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def find_checkpoint(name: str, revision: str | None = None) -> Path:
    """The directory of a checkpoint, which is downloaded where it is missing.

    Args:
        name: a directory, a hub id, or ``demo``.
        revision: branch, tag or commit on the hub; by default the pinned one, or ``main``.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    if name != DEMO:
        return hub.find_checkpoint(name, revision)
    from model.demo import CHECKPOINT

    return CHECKPOINT


async def find_and_load(options: LoadOptions) -> tuple[Engine, ModelInfo]:
    """Find or download the checkpoint and load it, without blocking the event loop.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be loaded.
    """
    return await _in_daemon_thread(lambda: _find_and_load(options))


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    """The result of ``work``; a program that is told to stop need not wait for its thread."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not done.done():  # else nobody waits any more
            outcome()

    def run() -> None:
        try:
            outcome = partial(done.set_result, work())
        except Exception as error:  # handed to whoever awaits
            outcome = partial(done.set_exception, error)
        with suppress(RuntimeError):  # the program stopped meanwhile, and the loop is closed
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await done


def _find_and_load(options: LoadOptions) -> tuple[Engine, ModelInfo]:
    try:
        directory = find_checkpoint(options.model, options.revision)
        return _load(directory, options)
    except ModelError:
        raise
    except Exception as error:  # a checkpoint can be broken in more ways than are checked
        logger.debug("loading %s failed", options.model, exc_info=True)
        raise CheckpointError(f"{options.model} cannot be loaded: {first_line(error)}") from error


def _load(directory: Path, options: LoadOptions) -> tuple[Engine, ModelInfo]:
    gc.disable()  # libraries are hundreds of thousands of objects that stay; none is garbage
    try:
        from model.engine.loading import load
    finally:
        gc.freeze()
        gc.enable()
    info = load.describe(directory, options.model)
    engine = load.load_engine(directory, options)
    gc.collect()
    gc.freeze()  # so that no request waits while the collector looks through all this again
    return engine, info
