"""Settings of a run, from the command line, and its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.demo.random_checkpoint import PRESETS, write_checkpoint


@dataclass(frozen=True)
class Options:
    """Settings of a run; see ``scripts/bench --help``."""

    dtype: str
    rounds: int
    concurrency: list[int]
    prompt_tokens: int
    new_tokens: int
    requests: int
    lengths: list[int]
    preset: str
    vllm_python: Path | None
    preload: list[Path] | None
    server_flags: list[str]
    smoke: bool
    out: Path
    checkpoints: Path

    def checkpoint(self, preset: str, text_only: bool = False, **changes: int) -> Path:
        """The directory of a random checkpoint, which is written at first use."""
        if self.smoke:
            preset = "tiny"
        marks = [f"{key}-{value}" for key, value in changes.items()]
        if text_only:
            marks.append("text")
        directory = self.checkpoints / "-".join([preset, *marks])
        last = ("model.safetensors", "model.safetensors.index.json")  # written last
        if not any((directory / name).exists() for name in last):
            write_checkpoint(
                directory, PRESETS[preset], name=f"phi3v-{preset}", text_only=text_only, **changes
            )
        return directory
