"""The image: its real Dockerfile is built, and run, by Debian's buildah."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.deploy.container.base_image import make_base
from tests.deploy.container.buildah import Buildah
from tests.deploy.container.container import Container, Running
from tests.deploy.container.package_sources import PackageSources, skip_if_unreachable
from tests.support.servers.live_server import ROOT, check_log
from tests.support.servers.wire import HELLO, check_error

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
IMAGE = "phi3v-server"
USER = 10001  # as the guide and the deployments have it


@dataclass
class Ended:
    """What a server left that was asked and stopped.

    Attributes:
        status: its exit status.
        log: what it printed.
        changed: the files that are not as they were, but for those in places to write.
    """

    status: int
    log: str
    changed: set[str]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """A storage that has the image that the Dockerfile starts from."""
    found = Buildah(tmp_path_factory.mktemp("buildah"))
    try:
        try:
            make_base(found)
        except RuntimeError as error:
            skip_if_unreachable(error)
            raise
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def container(buildah: Buildah) -> Container:
    """A container of the image for CPUs, which nothing has run in."""
    sources = PackageSources.configured()
    index = sources.torch_for_cpus()
    arguments = {"VARIANT": "cpu", **({"TORCH_INDEX": index} if index else {})}
    try:
        buildah.build(ROOT, IMAGE, sources, **arguments)
    except RuntimeError as error:
        skip_if_unreachable(error)
        raise
    return Container(buildah, IMAGE)


@pytest.fixture(scope="module")
def untouched(container: Container) -> dict[str, tuple[int, ...]]:
    """The container's files before its first start."""
    return container.files()


@pytest.fixture(scope="module")
def running(
    container: Container,
    untouched: dict[str, tuple[int, ...]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """A server with the demo model in the container."""
    started = start(container, tmp_path_factory.mktemp("log"))
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.kill()


@pytest.fixture(scope="module")
def key(container: Container, running: Running) -> str:
    """The key that the first start made, read as the README says."""
    return read_key(container)


@pytest.fixture(scope="module")
def ended(
    container: Container,
    untouched: dict[str, tuple[int, ...]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Ended:
    """A server that has lived from its start to SIGTERM."""
    started = start(container, tmp_path_factory.mktemp("log"))
    try:
        started.wait_until_ready()
        assert ask(started, read_key(container)).status_code == 200
        status = started.stop()
    finally:
        started.kill()
    now = container.files()
    changed = {
        path for path in now.keys() | untouched.keys() if now.get(path) != untouched.get(path)
    }
    return Ended(status, started.log.read_text("utf-8"), changed)


def free_port() -> int:
    """A port that nobody listens on; the container's network is the machine's."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def start(container: Container, folder: Path) -> Running:
    return container.start(free_port(), folder / "log", PHI3V_MODEL="demo")


def read_key(container: Container) -> str:
    return container.run("cat", "/cache/api-key").stdout.strip()


def ask(running: Running, key: str | None) -> httpx2.Response:
    return httpx2.post(
        f"{running.url}/chat/completions",
        json={"messages": HELLO, "max_tokens": 32},
        headers={} if key is None else {"api-key": key},
        timeout=120,
    )


def test_other_variants_are_refused(buildah: Buildah) -> None:
    with pytest.raises(RuntimeError, match="VARIANT is cuda or cpu, not tpu"):
        buildah.build(ROOT, "other", PackageSources({}), VARIANT="tpu")


def test_it_holds_the_code_and_nothing_else_of_the_project(container: Container) -> None:
    app = container.root / container.config["WorkingDir"].lstrip("/")
    assert {path.name for path in app.iterdir()} == {"server", "model"}
    assert not list(app.rglob("__pycache__"))


def test_its_server_becomes_healthy(running: Running) -> None:
    assert httpx2.get(f"{running.url}/health").status_code == 200


def test_the_first_start_makes_a_key_for_its_user_alone(container: Container, key: str) -> None:
    assert len(key) > 20
    assert container.run("stat", "--format", "%a %u", "/cache/api-key").stdout == f"600 {USER}\n"


def test_the_key_opens_the_chat(running: Running, key: str) -> None:
    answer = ask(running, key)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"].startswith("Hello!")


def test_nobody_is_let_in_without_the_key(running: Running) -> None:
    check_error(ask(running, None), 401, "Unauthorized", [])


def test_its_user_has_no_rights(running: Running) -> None:
    assert set(running.server.uids()) == {USER}
    status = Path(f"/proc/{running.server.pid}/status").read_text("ascii")
    assert "CapEff:\t0000000000000000\n" in status


def test_its_health_check_finds_the_server(container: Container, running: Running) -> None:
    checked = container.health(PHI3V_PORT=running.url.rpartition(":")[2])
    assert checked.returncode == 0, checked.stderr


def test_its_health_check_fails_without_a_server(container: Container) -> None:
    checked = container.health(PHI3V_PORT=str(free_port()))
    assert "Connection refused" in checked.stderr
    assert checked.returncode == 1


def test_sigterm_ends_it_with_status_0(ended: Ended) -> None:
    assert ended.status == 0


def test_its_log_tells_of_no_fault_and_not_the_key(ended: Ended, container: Container) -> None:
    check_log(ended.log)
    assert "clients must send the key in /cache/api-key" in ended.log
    assert read_key(container) not in ended.log


def test_it_writes_to_its_volume_and_tmp_only(ended: Ended) -> None:
    assert ended.changed == set()
