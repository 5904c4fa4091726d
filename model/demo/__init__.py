"""The embedded demo checkpoint: a small vision-language model, trained by ``scripts/train_demo``.

The engine treats it like any other checkpoint directory.
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
