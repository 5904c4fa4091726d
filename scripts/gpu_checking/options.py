"""Settings of a run, from the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from model.demo.random_checkpoint import PRESETS, Preset
from scripts.gpu_checking.device import fast_dtype, free_memory

ENOUGH = 14e9  # bytes of free GPU memory to run a model of the official size


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all parts have in common."""
    flag = parser.add_argument
    flag("--device", choices=["cuda", "cpu"], default="cuda", help="device to check")
    flag(
        "--preset",
        choices=sorted(PRESETS),
        help="size of the random model; default: full, the official size, if it fits on the GPU, "
        "else large, which has fewer layers",
    )
    flag("--model", type=Path, help="folder of the official checkpoint, for acceptance")
    flag("--picture", type=Path, help="picture for acceptance; default: a drawn chart")


@dataclass(frozen=True)
class Options:
    """Settings of a run; see ``scripts/gpu_check --help``."""

    device: torch.device
    preset_name: str
    model: Path | None = None
    picture: Path | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Options:
        """From parsed flags."""
        device = torch.device(args.device)
        default = "full" if free_memory(device) > ENOUGH else "large"
        return cls(device, args.preset or default, args.model, args.picture)

    @property
    def dtype(self) -> torch.dtype:
        """The fastest dtype of the device."""
        return fast_dtype(self.device)

    @property
    def preset(self) -> Preset:
        """Sizes of the random model."""
        return PRESETS[self.preset_name]

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is checked."""
        return self.device.type == "cuda"
