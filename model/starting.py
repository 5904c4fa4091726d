"""Load an engine from its options, in a process set up for it. Imports torch late."""

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
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from model import hub
from model.engine.config import DEMO, LoadOptions, ModelInfo
from model.errors import CheckpointError, ModelError
from model.phi3v.checkpoint import first_line

if TYPE_CHECKING:
    from model.engine.engine import Engine

logger = logging.getLogger(__name__)

T = TypeVar("T")


def set_environment() -> None:
    """Set environment variables that libraries read at import, unless the user has set them."""
    # How many loop iterations OpenMP threads spin before they sleep. The default spins for several
    # milliseconds and takes cores from other work; this is about 0.2 ms.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # The Hub's client sends telemetry even when there is nothing to download.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def find_checkpoint(name: str, revision: str | None = None) -> Path:
    """Return a checkpoint's directory; download it if it is missing.

    Args:
        name: a directory, a Hub id, or ``demo``.
        revision: branch, tag or commit on the Hub; default: the pinned one, or ``main``.

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
    """Run ``work`` in a daemon thread, which never delays the program's exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not done.done():  # else the caller was cancelled
            outcome()

    def run() -> None:
        try:
            outcome = partial(done.set_result, work())
        except Exception as error:  # re-raised where it is awaited
            outcome = partial(done.set_exception, error)
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await done


def _find_and_load(options: LoadOptions) -> tuple[Engine, ModelInfo]:
    try:
        load = _import_load()
        if options.model != DEMO:
            load.devices_for(options)  # an unusable GPU is refused before gigabytes are downloaded
        directory = find_checkpoint(options.model, options.revision)
        lora = None
        if options.lora is not None:
            lora = hub.find_adapter(options.lora, options.lora_revision)
        info = load.describe(directory, options.model, options.generation_config, options.lora)
        engine = load.load_engine(directory, options, lora)
    except ModelError:
        raise
    except Exception as error:  # a checkpoint can be broken in unforeseen ways
        logger.debug("loading %s failed", options.model, exc_info=True)
        raise CheckpointError(f"{options.model} cannot be loaded: {first_line(error)}") from error
    gc.collect()
    gc.freeze()  # so that no request waits while the collector scans all this again
    return engine, info


def _import_load() -> ModuleType:
    gc.disable()  # imports create hundreds of thousands of objects, none of them garbage
    try:
        from model.engine.loading import load
    finally:
        gc.freeze()
        gc.enable()
    return load
