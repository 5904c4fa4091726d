"""A stand-in for a Python image of Debian's: there may be no registry to pull the real one from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.deploy.container.buildah import Buildah
from tests.support import dockerfile
from tests.support.programs import output, program

# Debian's own Python is older than the image's. The lock has the hashes of all Pythons' wheels.
PACKAGES = ("ca-certificates", "python-is-python3", "python3", "python3-pip")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def base_name() -> str:
    """The one image that the Dockerfile starts from."""
    sources = [rest.split() for rest in dockerfile.values("FROM")]
    stages = {words[2] for words in sources if words[1:2] == ["AS"]}
    (name,) = {words[0] for words in sources} - stages
    return name


def make_base(buildah: Buildah) -> None:
    """An image under the name that the Dockerfile starts from, of the same release of Debian."""
    release = base_name().rpartition("-")[2]
    container = buildah("from", "scratch")
    root = Path(buildah("mount", container))
    # What debootstrap mounts goes with it, even if it is killed.
    command = [program("unshare"), "--mount", program("debootstrap"), "--variant", "minbase"]
    command += ["--include", ",".join(PACKAGES), release, str(root), *_mirror(release)]
    output(command, timeout=900)
    buildah("config", "--env", f"PATH={PATH}", container)
    buildah("commit", "--rm", container, base_name())


def _mirror(release: str) -> list[str]:
    """Where this machine's apt finds a release; nothing if it does not, and debootstrap knows."""
    if shutil.which("apt-get") is None:
        return []
    fields = ("--format", "$(SITE) $(RELEASE)", "Created-By: Packages")
    targets = output(["apt-get", "indextargets", *fields], timeout=60)
    return re.findall(rf"^(\S+) {re.escape(release)}$", targets, re.MULTILINE)[:1]
