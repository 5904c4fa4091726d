"""What systemd says of a unit file."""

from __future__ import annotations

import subprocess
from pathlib import Path

NAME = "phi3v-server.service"


def complaints(text: str, folder: Path) -> list[str]:
    """Lines about the unit of this text; other units of the machine may have faults of their own."""
    file = folder / NAME
    file.write_text(text, "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", file],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return [line for line in (done.stdout + done.stderr).splitlines() if NAME in line]
