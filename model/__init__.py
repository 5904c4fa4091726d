"""Phi-3-vision inference: the API that the server uses.

Importing this package does not import torch; ``load_engine`` does.

    engine, info = await load_engine(LoadOptions(model="demo"))
    generation = await engine.generate([Message("user", "Hello")], SamplingParams())
    async for delta in generation:
        print(delta.text, end="")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
from model.hub import OFFICIAL, abandon_downloads, find_adapter
from model.phi3v.inputs.chat import ImageFile, Message, MessageImage, Role
from model.phi3v.inputs.pictures import check_sides, to_rgb
from model.starting import find_and_load, find_checkpoint, set_environment

if TYPE_CHECKING:
    from model.engine.async_engine import AsyncEngine
    from model.engine.generation import Generation
    from model.phi3v.checking import Finding
    from model.sizing import Sizing

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
    "ImageFile",
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
    "Sizing",
    "Stats",
    "TextDelta",
    "TokenLogprob",
    "TooManyImagesError",
    "TookTooLongError",
    "Totals",
    "abandon_downloads",
    "abandon_exports",
    "check_checkpoint",
    "check_sides",
    "convert",
    "find_adapter",
    "find_checkpoint",
    "load_engine",
    "merge_adapter",
    "size",
    "to_rgb",
]

set_environment()  # before importing libraries that read it


def check_checkpoint(directory: Path, adapter: Path | None = None) -> list[Finding]:
    """Check every file of a checkpoint without loading weights; returns all problems found.

    Args:
        directory: the checkpoint.
        adapter: directory of an adapter to check for it, if any.
    """
    from model.phi3v.checking import check_files

    return check_files(directory, adapter)


def merge_adapter(directory: Path, adapter: Path, name: str, out: Path, dtype: str) -> str:
    """Write a checkpoint with an adapter merged into it; returns what was merged.

    Args:
        directory: the checkpoint.
        adapter: the adapter's directory.
        name: of the adapter, for messages.
        out: the new checkpoint's directory, which must not exist.
        dtype: of the new weights; ``auto`` keeps the checkpoint's.

    Raises:
        CheckpointError: something cannot be read or written, or does not fit together.
    """
    from model.phi3v.adapters.export import write_merged

    merged = write_merged(directory, adapter, name, out, dtype)
    return "" if merged is None else merged.summary()


def convert(directory: Path, out: Path) -> None:
    """Write a checkpoint or an adapter, saved with torch.save or by a trainer, in the official format.

    Raises:
        CheckpointError: something cannot be read or written.
    """
    from model.phi3v.adapters.export import convert_adapter, write_merged

    if (directory / "adapter_config.json").exists() and not (directory / "config.json").exists():
        convert_adapter(directory, out)
    else:
        write_merged(directory, None, "", out)


def abandon_exports() -> None:
    """Remove directories that ``merge_adapter`` and ``convert`` have not finished."""
    from model.phi3v.adapters.export import abandon_exports

    abandon_exports()


def size(options: LoadOptions, memory: float) -> Sizing:
    """What fits into a GPU's memory, without loading anything; see ``model.sizing``."""
    from model.sizing import size

    return size(options, memory)


async def load_engine(options: LoadOptions) -> tuple[AsyncEngine, ModelInfo]:
    """Find or download the checkpoint, load it, and start the engine on this event loop.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be loaded.
    """
    engine, info = await find_and_load(options)
    from model.engine.async_engine import AsyncEngine

    return AsyncEngine(engine), info
