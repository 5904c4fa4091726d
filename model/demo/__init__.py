"""The embedded demo checkpoint. To the engine it is a checkpoint directory like any other.

For now it is random: it exercises everything a real checkpoint does, and answers noise.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

DIRECTORY_NAME = "demo-random-tiny-1"  # change it whenever the files would change


def demo_checkpoint() -> Path:
    """Directory of the demo checkpoint, made at first use in the user's cache."""
    from model.demo.random_checkpoint import PRESETS, write_checkpoint

    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "phi3v-server"
    directory = cache / DIRECTORY_NAME
    if not directory.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        # Made aside and renamed, so that a second server or an interrupted start sees all or none.
        with tempfile.TemporaryDirectory(dir=cache) as aside:
            made = Path(aside) / DIRECTORY_NAME
            write_checkpoint(made, PRESETS["tiny"], seed=0, name="phi3v-demo")
            try:
                made.rename(directory)
            except OSError:
                if not directory.is_dir():
                    raise
    logger.warning("the demo model is a tiny random checkpoint: its answers are noise")
    return directory
