"""Read a checkpoint's JSON files and find its pickles; errors name the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from model.errors import CheckpointError

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
# What trainers leave beside the weights to resume from; nothing here reads it.
TRAINING_STATE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state(_\d+)?)\.(bin|pt|pth)"
)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raises CheckpointError if there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not contain a JSON object")
    return content


def pickles(directory: Path) -> list[str]:
    """Names of files in a format that can run code when loaded, but for a trainer's own state."""
    names = (file.name for file in directory.iterdir() if file.suffix in PICKLES)
    return sorted(name for name in names if not TRAINING_STATE.fullmatch(name))


def refusal_of_pickle(directory: Path, name: str) -> str:
    """Why a pickle in a checkpoint is refused, and what to do, as the end of a sentence."""
    has_weights = any(directory.glob("*.safetensors"))
    remedy = (
        "remove it, as there are safetensors files"
        if has_weights
        else f"convert it with phi3v-server convert {directory} --out OUT"
    )
    return f"{name}, a pickle, which can run code when loaded; this server loads safetensors only: {remedy}"


def first_line(error: BaseException) -> str:
    """A library's error message, shortened to fit into a sentence."""
    # str() of a KeyError quotes its message.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return repr(error)
    if len(lines) > 1 and lines[0].endswith(":"):  # only a heading
        return f"{lines[0]} {lines[1]}"
    # A single word does not explain the error.
    return lines[0] if " " in lines[0] else repr(error)
