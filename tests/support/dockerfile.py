"""The Dockerfile, read without Docker."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.support.servers.live_server import ROOT

TEXT = (ROOT / "Dockerfile").read_text("utf-8")


def instructions(stage: int | None = None) -> Iterator[tuple[str, str]]:
    """Instructions and their arguments in order, of all stages or of one, counted from 0."""
    whole = re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", "")
    number = -1
    for line in whole.splitlines():
        if line.strip():
            name, rest = line.split(maxsplit=1)
            number += name == "FROM"
            if stage in (None, number):
                yield name, rest


def values(name: str) -> list[str]:
    """The arguments of all instructions of a name."""
    return [rest for found, rest in instructions() if found == name]
