"""Images without Docker: Debian's buildah, with a storage of its own that is thrown away."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.deploy.container.package_sources import PackageSources
from tests.support.programs import output, program, remove, without

# Programs run in a chroot with mounts of their own, Docker's filter of system calls and its
# capabilities, but in the machine's network and among its processes. It needs root and nothing else.
ISOLATION = "chroot"
BUILD_TIMEOUT = 1200


class Buildah:
    """The program, and its storage in a folder."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            without("images are built by root")
        self.folder = folder
        self._program = program("buildah")
        self.environment = {"BUILDAH_ISOLATION": ISOLATION, "TMPDIR": str(folder)}

    def command(self, *words: str | Path) -> list[str | Path]:
        """The words of a command."""
        places = ("--root", self.folder / "storage", "--runroot", self.folder / "run")
        # vfs copies whole trees, which takes seconds, and needs nothing of the machine's file system.
        return [self._program, "--storage-driver", "vfs", *places, *words]

    def __call__(self, *words: str | Path, timeout: float = 900) -> str:
        """Run a command that must succeed."""
        return output(self.command(*words), timeout, environment=self.environment).strip()

    def build(self, context: Path, name: str, sources: PackageSources, **arguments: str) -> None:
        """Build a folder's Dockerfile, with what this machine's pip is told."""
        configuration = self.folder / "pip.conf"
        configuration.write_text(sources.of_pip(), "utf-8")
        mounts = [f"{path}:{path}:ro" for path in sorted(sources.paths())]
        mounts.append(f"{configuration}:/etc/pip.conf:ro")
        given = [f"{argument}={value}" for argument, value in arguments.items()]
        self(
            *("build", "--pull-never", "--tag", name),
            *("--format", "docker"),  # OCI's has no health checks
            *(word for mount in mounts for word in ("--volume", mount)),
            *(word for argument in given for word in ("--build-arg", argument)),
            context,
            timeout=BUILD_TIMEOUT,
        )

    def config(self, image: str) -> dict[str, Any]:
        """What an image says of how it is to be run, as Docker names it."""
        config: dict[str, Any] = json.loads(self("inspect", "--type", "image", image))["Docker"]
        return dict(config["config"])

    def close(self) -> None:
        """Remove all containers and images, and the storage."""
        self("rm", "--all")
        remove(self.folder)
