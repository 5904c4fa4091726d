"""The Dockerfile, read and carried out without Docker."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.live_server import ROOT

TEXT = (ROOT / "Dockerfile").read_text("utf-8")
FOLDERS = ("/opt/venv", "/cache", "/build", "/app")  # that its steps and settings name


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


def command(name: str) -> list[str]:
    """The words of a program that is given as JSON, as ENTRYPOINT and HEALTHCHECK are."""
    (rest,) = values(name)
    words: list[str] = json.loads(rest[rest.index("[") :])
    return words


class Image:
    """What the instructions leave, in a folder instead of the root.

    Attributes:
        folder: stands for ``/``.
        environment: of the last stage, for its programs.
    """

    def __init__(self, folder: Path, **arguments: str) -> None:
        """Carry out the stage that installs, with build arguments, and the last one's settings."""
        self.folder = folder
        for path in FOLDERS:
            self.path(path).mkdir(parents=True)
        given = {**self._given(0, "ARG"), **arguments}
        for name, rest in instructions(0):
            if name == "COPY":
                self._copy(rest, self.path("/build"))
            elif name == "RUN":
                self._run(self._moved(rest), given)
        for name, rest in instructions(1):
            if name == "COPY" and not rest.startswith("--from=build"):
                self._copy(rest, self.path("/app"))
        self.environment = self._given(1, "ENV")

    def path(self, path: str) -> Path:
        """Where an absolute path of the image is."""
        return self.folder / path.lstrip("/")

    def _run(self, step: str, given: dict[str, str]) -> None:
        # python and pip of the base image are those that run the tests.
        programs = (
            f'python() {{ {shlex.quote(sys.executable)} "$@"; }}; pip() {{ python -m pip "$@"; }}'
        )
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{programs}; {step}"],
            cwd=self.path("/build"),
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{step}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")

    def _copy(self, rest: str, folder: Path) -> None:
        source, target = rest.split()
        if f"!{source}\n" not in (ROOT / ".dockerignore").read_text("utf-8"):
            raise RuntimeError(f"{source} is not sent to Docker: see .dockerignore")
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, folder / target, ignore=ignored)
        else:
            shutil.copy(ROOT / source, folder / target)

    def _moved(self, text: str) -> str:
        found = "|".join(FOLDERS)
        return re.sub(rf"(?<![\w.])(?:{found})\b", lambda path: str(self.path(path[0])), text)

    def _given(self, stage: int, name: str) -> dict[str, str]:
        """The variables of ARG or ENV."""
        words = [
            word
            for found, rest in instructions(stage)
            if found == name
            for word in shlex.split(self._moved(rest))
        ]
        pairs = (word.partition("=") for word in words)
        return {key: value.replace("$PATH", os.environ["PATH"]) for key, _, value in pairs}
