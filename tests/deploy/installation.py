"""The project as a user installs it: its wheel, and an environment that has nothing else."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.deploy.container.package_sources import PackageSources
from tests.support.programs import output
from tests.support.servers.live_server import ROOT


def tracked(*folders: str) -> list[str]:
    """The files of the project, or of some folders of it, that git knows and that are there."""
    listed = output(["git", "ls-files", "-z", *folders], timeout=60, cwd=ROOT).strip("\0")
    return [path for path in listed.split("\0") if (ROOT / path).exists()]


def build_wheel(folder: Path) -> Path:
    """The project's wheel, built from a copy: a build leaves files beside its source."""
    source = folder / "source"
    for path in tracked():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    output([*pip, "--wheel-dir", str(folder / "wheels"), str(source)], timeout=300)
    (wheel,) = (folder / "wheels").iterdir()
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install a wheel, with what it needs, into a new environment; its folder of programs.

    It is pip's work, done by uv in a fifth of the time.
    """
    flags, environment = PackageSources.configured().of_uv()
    environment["UV_CACHE_DIR"] = str(folder / "cache")  # on the same disk, for hard links
    uv = [sys.executable, "-m", "uv"]
    made = folder / "environment"
    new = ["venv", "--quiet", "--no-config", "--python", sys.executable, str(made)]
    output([*uv, *new], timeout=60)
    pip = ["pip", "install", "--quiet", *flags, "--python", str(made / "bin" / "python")]
    pins = ["--constraint", str(ROOT / "scripts" / "constraints.txt")]
    output([*uv, *pip, *pins, str(wheel)], timeout=900, environment=environment)
    return made / "bin"
