"""Phi-3-vision, from a checkpoint's name to streams of text: the one door the server uses.

Importing this package does not import torch; ``load_engine`` does.

    engine, info = await load_engine(LoadOptions(model="demo"))
    generation = await engine.generate([Message("user", "Hello")], SamplingParams())
    async for delta in generation:
        print(delta.text, end="")
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from model import hub
from model.engine.config import LoadOptions, ModelInfo
from model.engine.request import (
    Alternative,
    Describe,
    FinishReason,
    GrammarSpec,
    SamplingParams,
    TextDelta,
    TokenLogprob,
)
from model.engine.stats import SECONDS, Diagnostics, Histogram, Stats, Totals
from model.errors import (
    CheckpointError,
    ContextLengthError,
    EngineDeadError,
    GrammarError,
    ImageError,
    ModalityError,
    ModelError,
    OverloadedError,
    RequestError,
    TookTooLongError,
    TooManyImagesError,
)
from model.hub import OFFICIAL
from model.phi3v.checkpoint import first_line
from model.phi3v.inputs.chat import Message, MessageImage, Role
from model.phi3v.inputs.pictures import check_sides, to_rgb

if TYPE_CHECKING:
    from model.engine.async_engine import AsyncEngine
    from model.engine.engine import Engine
    from model.engine.generation import Generation
    from model.phi3v.checking import Finding

__all__ = [
    "OFFICIAL",
    "SECONDS",
    "Alternative",
    "AsyncEngine",
    "CheckpointError",
    "ContextLengthError",
    "Describe",
    "Diagnostics",
    "EngineDeadError",
    "Finding",
    "FinishReason",
    "Generation",
    "GrammarError",
    "GrammarSpec",
    "Histogram",
    "ImageError",
    "LoadOptions",
    "Message",
    "MessageImage",
    "ModalityError",
    "ModelError",
    "ModelInfo",
    "OverloadedError",
    "RequestError",
    "Role",
    "SamplingParams",
    "Stats",
    "TextDelta",
    "TokenLogprob",
    "TooManyImagesError",
    "TookTooLongError",
    "Totals",
    "abandon_downloads",
    "check_checkpoint",
    "check_sides",
    "find_checkpoint",
    "load_engine",
    "to_rgb",
]

logger = logging.getLogger(__name__)

# Read by the OpenMP library when torch is loaded: how long, in turns of a loop, its threads wait for
# work before they sleep. The default, several milliseconds, takes the cores from everything else
# that runs here, and from each other when the machine is busy; this is about 0.2 ms.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Read by the hub's client when it is imported: whether it tells the hub of what it runs in, for which
# it also asks the hub when nothing is to be downloaded.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

DEMO = "demo"  # the name of the embedded checkpoint, wherever a model is named


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


def abandon_downloads() -> bool:
    """To be called before a program ends that may be downloading a checkpoint.

    Returns:
        whether it is; ``os._exit`` is then the only end that does not wait for it.
    """
    return hub.abandon_downloads()


def check_checkpoint(directory: Path) -> list[Finding]:
    """Look at every file of a checkpoint, without loading weights; every problem is a finding."""
    from model.phi3v.checking import check_files

    return check_files(directory)


async def load_engine(options: LoadOptions) -> tuple[AsyncEngine, ModelInfo]:
    """Find or download the checkpoint, load it, and start its engine on this event loop.

    The work is done in a daemon thread, so that a program told to stop need not wait for it.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be loaded.
    """
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[tuple[Engine, ModelInfo]] = loop.create_future()

    def settle(result: tuple[Engine, ModelInfo] | None, error: BaseException | None) -> None:
        if loaded.done():
            return
        if result is not None:
            loaded.set_result(result)
        elif error is not None:
            loaded.set_exception(error)

    def run() -> None:
        try:
            result, error = _load(options), None
        except Exception as failure:  # handed to whoever awaits
            result, error = None, failure
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            return  # the program stopped meanwhile; nobody waits for the engine

    threading.Thread(target=run, name="load", daemon=True).start()
    engine, info = await loaded
    from model.engine.async_engine import AsyncEngine

    return AsyncEngine(engine), info


def _load(options: LoadOptions) -> tuple[Engine, ModelInfo]:
    try:
        return _find_and_load(options)
    except ModelError:
        raise
    except Exception as error:  # a checkpoint can be broken in more ways than are checked
        logger.debug("loading %s failed", options.model, exc_info=True)
        raise CheckpointError(f"{options.model} cannot be loaded: {first_line(error)}") from error


def _find_and_load(options: LoadOptions) -> tuple[Engine, ModelInfo]:
    directory = find_checkpoint(options.model, options.revision)
    gc.disable()  # libraries are hundreds of thousands of objects that stay; none is garbage
    try:
        from model.engine.loading import load as loading
    finally:
        gc.freeze()
        gc.enable()
    info = loading.describe(directory, options.model)
    engine = loading.load_engine(directory, options)
    gc.collect()
    gc.freeze()  # no answer is to wait while all that is looked through for garbage again
    return engine, info
