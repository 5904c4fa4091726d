"""Reading a checkpoint's JSON files, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises CheckpointError when there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


def first_line(error: Exception) -> str:
    """What a library's error says, short enough for one sentence."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)
