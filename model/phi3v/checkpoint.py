"""What a checkpoint's files are: reading its JSON, with errors that name the file; its pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.errors import CheckpointError

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises CheckpointError when there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


def pickles(directory: Path) -> list[str]:
    """Names of files in a format that can run code when it is read."""
    return sorted(file.name for file in directory.iterdir() if file.suffix in PICKLES)


def first_line(error: BaseException) -> str:
    """What a library's error says, short enough for one sentence."""
    # A KeyError shows its message as a literal.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return repr(error)
    if len(lines) > 1 and lines[0].endswith(":"):  # only the header of what went wrong
        return f"{lines[0]} {lines[1]}"
    # A name alone says nothing of what is wrong with it.
    return lines[0] if " " in lines[0] else repr(error)
