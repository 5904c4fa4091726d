"""The embedded demo checkpoint: a small model that sees, trained by ``scripts/train_demo``.

To the engine it is a checkpoint directory like any other.
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
