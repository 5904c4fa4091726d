"""Where the clients run: each set of packages in an environment of its own, made at first use."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.programs import program
from tests.support.servers.live_server import ROOT

CLIENTS = ROOT / "tests" / "wire" / "clients"
NODE = ROOT / "tests" / "wire" / "node"
ENVIRONMENTS = ROOT / ".venv-clients"


def python_with(name: str) -> Path:
    """The Python with what ``tests/wire/clients/environments/NAME.txt`` pins, made anew if that changed."""
    requirements = CLIENTS / "environments" / f"{name}.txt"
    directory = ENVIRONMENTS / name
    stamp = directory / "installed"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two test runs at once, one makes it
        if not stamp.exists() or stamp.read_text() != digest:
            shutil.rmtree(directory, ignore_errors=True)
            _run(sys.executable, "-m", "venv", directory)
            # All dependencies are in the file, and most modules are never imported.
            pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-compile")
            _run(directory / "bin" / "python", *pip, "-r", requirements)
            stamp.write_text(digest)
    return directory / "bin" / "python"


def node_directory() -> Path:
    """The folder of the JavaScript programs, with the packages of its lock file installed."""
    npm = program("npm")
    installed = NODE / "node_modules" / ".package-lock.json"
    lock = NODE / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        _run(npm, "ci", "--no-audit", "--no-fund", cwd=NODE)
    return NODE


def _run(*command: object, cwd: Path = ROOT) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
