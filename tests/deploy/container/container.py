"""A container of an image, run as its image says."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.deploy.container.buildah import Buildah
from tests.support.programs import run

START_TIMEOUT = 600  # nothing of it is compiled or read before
# Where the image may write. /cache is a volume, whose files are not in the container's tree.
TO_WRITE = ("cache", "tmp")
# buildah puts a mark of containers there, /run/.containerenv, each time that a program runs.
CHANGED_BY_BUILDAH = ("run", "run/.containerenv")


@dataclass
class Running:
    """A container's program as it runs."""

    process: subprocess.Popen[bytes]
    program: list[str]
    url: str
    log: Path

    @property
    def server(self) -> psutil.Process:
        """The program itself, beneath the processes of buildah that keep it."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        (found,) = (each for each in below if each.cmdline()[1:] == self.program[1:])
        return found

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(httpx2.TransportError):  # it does not listen yet
                if httpx2.get(f"{self.url}/health").status_code == 200:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"the container is not ready:\n{self.log.read_text('utf-8')}")

    def stop(self) -> int:
        """End the program as ``docker stop`` does; its exit status is buildah's."""
        if self.process.poll() is None:
            self.server.terminate()
        return self.process.wait(200)

    def kill(self) -> None:
        """End it in any case, with the processes that keep it and those it keeps."""
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid)
            for each in (family, *family.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            self.process.wait()


@dataclass
class Container:
    """A container. Programs run as its image's user, with its variables, in its folder."""

    buildah: Buildah
    image: str
    name: str = field(init=False)
    root: Path = field(init=False)
    config: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.buildah("from", "--pull-never", self.image)
        self.root = Path(self.buildah("mount", self.name))
        self.config = self.buildah.config(self.image)
        # buildah makes what it mounts upon, such as /etc/hosts and /run/.containerenv, at first use.
        self.run("true")

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the container, as ``docker exec`` does."""
        return run(
            self._command(words, environment), timeout=100, environment=self.buildah.environment
        )

    def health(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Check the container's health as Docker does."""
        kind, *words = self.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.run(*words, **environment)

    def start(self, port: int, log: Path, **environment: str) -> Running:
        """Start what the image is for, as ``docker run`` does: buildah knows no entry points."""
        words = [*self.config["Entrypoint"], *(self.config["Cmd"] or [])]
        variables = {"PHI3V_PORT": str(port), **environment}
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._command(words, variables),
                env={**os.environ, **self.buildah.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return Running(process, words, f"http://127.0.0.1:{port}", log)

    def files(self) -> dict[str, tuple[int, ...]]:
        """Each file that nobody may change, with what a change would change of it.

        /proc, /sys, /dev, /etc/hosts and the like are as they are in the image: what buildah mounts
        there is not in sight here.
        """
        found = dict(self._files())
        for path in CHANGED_BY_BUILDAH:
            found.pop(path, None)
        return found

    def _files(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        kept = {self.root / name for name in TO_WRITE}
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if Path(folder, name) not in kept]
            for path in (Path(folder, name) for name in (*folders, *names)):
                found = path.lstat()
                times = (found.st_mtime_ns, found.st_ctime_ns)
                yield str(path.relative_to(self.root)), (found.st_ino, found.st_size, *times)

    def _command(self, words: Sequence[str], environment: dict[str, str]) -> list[str | Path]:
        given = (("--env", f"{name}={value}") for name, value in environment.items())
        variables = (word for pair in given for word in pair)
        return self.buildah.command("run", *variables, self.name, "--", *words)
