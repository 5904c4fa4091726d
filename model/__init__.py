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
from model.hub import OFFICIAL, abandon_downloads
from model.phi3v.inputs.chat import Message, MessageImage, Role
from model.phi3v.inputs.pictures import check_sides, to_rgb
from model.starting import find_and_load, find_checkpoint, set_environment

if TYPE_CHECKING:
    from model.engine.async_engine import AsyncEngine
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

set_environment()  # before importing libraries that read it


def check_checkpoint(directory: Path) -> list[Finding]:
    """Check every file of a checkpoint without loading weights; returns all problems found."""
    from model.phi3v.checking import check_files

    return check_files(directory)


async def load_engine(options: LoadOptions) -> tuple[AsyncEngine, ModelInfo]:
    """Find or download the checkpoint, load it, and start the engine on this event loop.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be loaded.
    """
    engine, info = await find_and_load(options)
    from model.engine.async_engine import AsyncEngine

    return AsyncEngine(engine), info
