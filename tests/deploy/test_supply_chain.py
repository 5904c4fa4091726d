"""What the image is made of: packages by hash, of the versions that are tested here."""

from __future__ import annotations

import re
import tomllib

from tests.support import dockerfile
from tests.support.servers.live_server import ROOT

LOCK = (ROOT / "requirements.lock").read_text("utf-8")
LOCKED = {
    name: (version, hashes.split())
    for name, version, hashes in re.findall(
        r"^([a-z0-9-]+)==(\S+) \\\n((?: +--hash=\S+(?: \\)?\n)+)", LOCK, re.MULTILINE
    )
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_is_locked_by_hash_and_nothing_else_is_said() -> None:
    rest = [line for line in LOCK.splitlines() if not line.startswith(("#", "    --hash=sha256:"))]
    assert len(rest) == len(LOCKED) > 30
    for _, hashes in LOCKED.values():
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}|\\", word) for word in hashes)
    assert "://" not in LOCK


def test_the_lock_has_what_the_project_needs_as_it_is_pinned() -> None:
    """If this fails, dependencies have changed: run scripts/lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for requirement in project["dependencies"]:
        assert normal(re.match(r"[\w.-]+", requirement)[0]) in LOCKED  # type: ignore[index]
    constraints = (ROOT / "scripts" / "constraints.txt").read_text("utf-8")
    pinned = {
        normal(name): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)", constraints, re.M)
    }
    differing = {
        name: version
        for name, (version, _) in LOCKED.items()
        if pinned.get(name, version) != version
    }
    assert differing == {}


def test_the_image_installs_by_hash_all_but_a_torch_without_cuda() -> None:
    (step,) = (rest for name, rest in dockerfile.instructions(0) if name == "RUN")
    torch, rest = re.findall(r"pip [^&;]*install[^&;]*", step)
    assert step.index(torch) > step.index(" cpu) ")
    for install in (torch, rest):
        assert "--no-deps --only-binary :all:" in install
    assert "--requirement packages.lock" in rest
    assert "--require-hashes" in rest
    # Of the version that is tested, and nothing else without a hash.
    assert torch.count("==") == 1
    assert "$(grep --only-matching '^torch==[^ ]*' requirements.lock)" in torch
    assert all("pip" not in rest for name, rest in dockerfile.instructions(1) if name == "RUN")
