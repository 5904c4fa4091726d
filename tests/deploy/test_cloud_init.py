"""The example of a VM: what cloud-init, systemd, Docker and the image know of each other."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from server.auth.keys import Keys
from server.auth.limits import Limits
from server.settings import Settings
from tests.deploy.unit_file import complaints
from tests.support import dockerfile
from tests.support.programs import program
from tests.support.servers.live_server import ROOT

pytestmark = pytest.mark.slow  # in all

TEXT = (ROOT / "scripts" / "deploy" / "cloud-init.yaml").read_text("utf-8")
CONFIG: dict[str, Any] = yaml.safe_load(TEXT)
FILES = {file["path"]: file["content"] for file in CONFIG["write_files"]}
UNIT = FILES["/etc/systemd/system/phi3v-server.service"]
SCHEMA = "usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json"


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """cloud-init's own, from its package, which is not installed: it would set this machine up."""
    installed = Path("/") / SCHEMA
    if not installed.exists():
        folder = tmp_path_factory.mktemp("cloud-init")
        limits = ("-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10")
        download = ("apt-get", *limits, "download", "cloud-init")
        try:
            subprocess.run(download, cwd=folder, capture_output=True, check=True, timeout=60)
        except subprocess.TimeoutExpired:
            pytest.skip("apt-get cannot download cloud-init: it took more than 60 seconds")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"apt-get cannot download cloud-init: {error.stderr[-200:]!r}")
        (package,) = folder.glob("*.deb")
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        installed = folder / SCHEMA
    found: dict[str, Any] = json.loads(installed.read_text("utf-8"))
    return found


def test_cloud_init_takes_it(schema: dict[str, Any]) -> None:
    assert TEXT.startswith("#cloud-config\n")
    validator = jsonschema.Draft4Validator(schema)
    assert [error.message for error in validator.iter_errors(CONFIG)] == []
    wrong = {**CONFIG, "write_files": [{"paht": "/etc/phi3v"}], "runcmd": [3]}
    places = {error.absolute_path[0] for error in validator.iter_errors(wrong)}
    assert places == {"write_files", "runcmd"}


def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.replace("\\\n", ""))
    return parser


def docker_run() -> dict[str, list[str]]:
    """The flags of ``docker run`` and their values."""
    words = unit()["Service"]["ExecStart"].split()
    assert words[1] == "run"
    flags: dict[str, list[str]] = {}
    for word, following in pairwise(words):
        if word.startswith("--"):
            flags.setdefault(word, []).append(following)
    return flags


def test_the_container_gets_what_the_image_wants() -> None:
    flags = docker_run()
    mounts = dict(mount.split(":")[:2] for mount in flags["--volume"])
    assert mounts["phi3v-cache"] in dockerfile.values("VOLUME")
    (port,) = dockerfile.values("EXPOSE")
    assert flags["--publish"] == [f"127.0.0.1:{port}:{port}"]
    (file,) = flags["--env-file"]
    settings = dict(line.split("=") for line in FILES[file].splitlines())
    assert {
        name.removeprefix("PHI3V_").lower() for name in settings
    } <= Settings.model_fields.keys()
    assert mounts["/etc/phi3v"] == str(Path(settings["PHI3V_API_KEYS_FILE"]).parent)
    assert "key" not in str(flags).lower()  # the process list shows none
    assert re.search(r"^Environment=image=\S+$", UNIT, re.MULTILINE)


def test_answers_get_their_time_to_finish() -> None:
    drain = Settings.model_fields["drain_timeout"].default
    (stop,) = map(int, docker_run()["--stop-timeout"])
    assert unit().getint("Service", "TimeoutStopSec") > stop > drain


def test_every_command_is_one_and_what_it_needs_is_installed() -> None:
    for command in CONFIG["runcmd"]:
        done = subprocess.run(["sh", "-n", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    started = {
        word for line in CONFIG["runcmd"] for word in re.findall(r"(?:^|[|(&] )(\w\S*)", line)
    }
    of_ubuntu = {"apt-get", "chown", "printf", "systemctl", "umask"}
    packages = {"curl": "curl", "gpg": "gpg", "ubuntu-drivers": "ubuntu-drivers-common"}
    assert started - of_ubuntu - packages.keys() == {"nvidia-ctk"}
    assert set(packages.values()) | {"docker.io", "openssl"} <= set(CONFIG["packages"])
    # The container's toolkit is found by the key that is fetched.
    (source,) = [text for path, text in FILES.items() if path.endswith(".list")]
    keyring = re.search(r"signed-by=(\S+)\]", source)
    assert keyring is not None
    assert any(f"--output {keyring[1]}" in line for line in CONFIG["runcmd"])


def test_the_key_file_is_the_servers_alone(tmp_path: Path) -> None:
    program("openssl")
    (command,) = [line for line in CONFIG["runcmd"] if "keys.toml" in line]
    (user,) = dockerfile.values("USER")
    write, _, own = command.replace("/etc/phi3v", str(tmp_path)).partition(" && chown ")
    assert own.split()[0] == user
    subprocess.run(["sh", "-c", write], check=True)
    file = tmp_path / "keys.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys = Keys(None, None, file, Limits())
    caller = keys.find(file.read_text("ascii").split('"')[1])
    assert caller is not None
    assert caller.name == "admin"


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
def test_the_unit_is_one(tmp_path: Path) -> None:
    text = UNIT.replace("/usr/bin/docker", sys.executable)  # which must exist
    text = text.replace("Requires=docker.service\n", "")  # as must that
    assert complaints(text, tmp_path) == []
    assert complaints(text.replace("RestartSec", "RestartSek"), tmp_path) != []
