"""Tokenizer files as Azure's must have been."""

from __future__ import annotations

import json
from pathlib import Path

STRIPPING = ("<|user|>", "<|end|>", "<|system|>")


def strip_in(path: Path) -> None:
    """Set ``rstrip`` on the control tokens that do not have it in the public files."""
    spec = json.loads(path.read_text("utf-8"))
    tokens = spec.get("added_tokens") or spec["added_tokens_decoder"].values()
    for token in tokens:
        if token["content"] in STRIPPING:
            token["rstrip"] = True
    path.write_text(json.dumps(spec), "utf-8")
