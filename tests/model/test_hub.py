"""Checkpoints from the hub, by its own client, against a stand-in that speaks its protocol."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # it is there

from model.errors import CheckpointError
from model.hub import OFFICIAL, REVISIONS, find_checkpoint
from tests.support.peers.hub import Hub, Repo, serve_hub
from tests.support.servers.live_server import ROOT, check_log, start_server
from tests.support.waiting import eventually

MODEL = "someone/Some-Phi-3-vision"
COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def hub(tiny: Path) -> Iterator[Hub]:
    """A hub with the tiny checkpoint, in two commits, beside files that nobody should fetch."""
    files = {file.name: file.read_bytes() for file in tiny.iterdir()}
    others = {
        "README.md": b"# A model",
        "modeling_phi3_v.py": b"raise SystemExit('remote code ran')",
        "pytorch_model.bin": b"cos\nsystem\n(S'exit 1'\ntR.",
        "onnx/config.json": b"{}",
    }
    with serve_hub() as hub:
        older = {**files, "config.json": files["config.json"] + b"\n"}
        commits = {COMMIT: {**files, **others}, OLDER: older}
        hub.repos[MODEL] = Repo(commits, {"main": COMMIT, "v1": OLDER})
        yield hub


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost"}
    return {**kept, **given, **more}


def download(hub: Hub, home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "download", *(words or (MODEL,))],
        cwd=ROOT,
        env=environment(hub, home, **more),
        capture_output=True,
        text=True,
        timeout=120,
    )


def directory_of(done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence that a failed download ends in."""
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    check_log(done.stderr)
    (line,) = (text for text in done.stderr.splitlines() if text.startswith("phi3v-server: "))
    return line


def test_download(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    done = download(hub, tmp_path)
    directory = directory_of(done)
    assert directory.is_relative_to(tmp_path / "hub")
    assert directory.name == COMMIT
    assert {file.name for file in directory.iterdir()} == {file.name for file in tiny.iterdir()}
    for file in tiny.iterdir():
        assert (directory / file.name).read_bytes() == file.read_bytes()
    assert "GB into" in done.stderr  # told what is to come
    assert "%" in done.stderr  # progress
    assert "HTTP Request" not in done.stderr
    for unwanted in (".bin", ".py", ".md", "onnx"):
        assert hub.asked("GET", unwanted) == hub.asked("HEAD", unwanted) == []
    hub.requests.clear()
    again = download(hub, tmp_path)
    assert directory_of(again) == directory
    assert hub.asked("GET", "/store/") == hub.asked("GET", "/resolve/") == []


@pytest.mark.parametrize("revision", ["v1", OLDER])
def test_revisions(hub: Hub, tmp_path: Path, revision: str) -> None:
    directory = directory_of(download(hub, tmp_path, MODEL, "--revision", revision))
    assert directory.name == OLDER
    assert (directory / "config.json").read_bytes().endswith(b"\n\n")


def test_the_official_model_is_pinned(hub: Hub, tmp_path: Path) -> None:
    files = hub.repos[MODEL].commits[COMMIT]
    pinned = {**files, "config.json": files["config.json"] + b"\n"}
    hub.repos[OFFICIAL] = Repo({COMMIT: files, REVISIONS[OFFICIAL]: pinned}, {"main": COMMIT})
    assert directory_of(download(hub, tmp_path, OFFICIAL)).name == REVISIONS[OFFICIAL]
    newest = download(hub, tmp_path, OFFICIAL, "--revision", "main")
    assert directory_of(newest).name == COMMIT


def test_a_pinned_revision_in_the_cache_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    first = directory_of(download(hub, tmp_path, MODEL, "--revision", COMMIT))
    hub.requests.clear()
    assert directory_of(download(hub, tmp_path, MODEL, "--revision", COMMIT)) == first
    assert hub.requests == []


@pytest.mark.parametrize("offline", ["1", "0"])
def test_without_the_hub_the_cache_will_do(hub: Hub, tmp_path: Path, offline: str) -> None:
    first = directory_of(download(hub, tmp_path))
    hub.status = 500
    assert directory_of(download(hub, tmp_path, HF_HUB_OFFLINE=offline)) == first


def test_a_broken_connection_is_resumed_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    """The client writes 10 MiB at a time; no more than what is on its way to them is lost."""
    chunk = 10 << 20
    large = bytes(range(256)) * (25 << 12)
    hub.repos[MODEL].commits[COMMIT]["model.safetensors"] = large
    hub.breaks, hub.breaks_after = 2, chunk + 1_000_000
    directory = directory_of(download(hub, tmp_path))
    assert (directory / "model.safetensors").read_bytes() == large
    ranges = [told.get("range") for told in hub.asked("GET", "/store/")]
    assert ranges == [None, f"bytes={chunk}-", f"bytes={2 * chunk}-"]


def test_a_broken_download_keeps_the_files_that_are_done(hub: Hub, tmp_path: Path) -> None:
    hub.breaks, hub.breaks_after = 1000, 0
    sentence = complaint(download(hub, tmp_path))
    assert "cannot be reached" in sentence
    assert "complete files are kept" in sentence
    done = hub.asked("GET", "/resolve/")
    assert done
    hub.breaks = 0
    hub.requests.clear()
    assert directory_of(download(hub, tmp_path)).name == COMMIT
    assert len(hub.asked("GET", "/store/")) == 1
    assert hub.asked("GET", ".json") == []


def partial_files(home: Path) -> list[Path]:
    return list(home.rglob("*.incomplete"))


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [
        (("download", MODEL), signal.SIGINT, 130),
        (("download", MODEL), signal.SIGTERM, 143),
        (("--model", MODEL, "--port", "0"), signal.SIGTERM, 0),
    ],
)
def test_a_signal_ends_a_download_and_leaves_no_part_of_a_file(
    hub: Hub, tmp_path: Path, command: tuple[str, ...], number: signal.Signals, status: int
) -> None:
    hub.goes_on.clear()
    process = subprocess.Popen(
        [sys.executable, "-m", "server", *command],
        cwd=ROOT,
        env=environment(hub, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def is_downloading() -> bool:
        assert process.poll() is None
        return bool(hub.asked("GET", "/store/") and partial_files(tmp_path))

    eventually(is_downloading, seconds=200)
    process.send_signal(number)
    output, _ = process.communicate(timeout=100)  # the hub would keep it waiting longer
    assert process.returncode == status, output
    check_log(output)
    sentence = f"\nphi3v-server: interrupted by {number.name}; complete files are kept"
    assert (sentence in output) == (status != 0)
    assert partial_files(tmp_path) == []
    hub.goes_on.set()
    assert directory_of(download(hub, tmp_path)).name == COMMIT


def test_parts_that_killed_downloads_left_are_removed(hub: Hub, tmp_path: Path) -> None:
    """But not those of a file that somebody downloads, who holds its lock."""
    folder = "models--" + MODEL.replace("/", "--")
    blobs, locks = (tmp_path / "hub" / parent / folder for parent in ("", ".locks"))
    blobs = blobs / "blobs"
    for each in (blobs, locks):
        each.mkdir(parents=True)
    for etag in ("1" * 40, "2" * 40):
        (blobs / f"{etag}.0a1b2c3d.incomplete").write_bytes(b"x")
    with WeakFileLock(locks / ("1" * 40 + ".lock")):
        directory_of(download(hub, tmp_path))
    assert [file.name[0] for file in partial_files(tmp_path)] == ["1"]


@pytest.mark.parametrize("gated", [False, True])
def test_tokens(hub: Hub, tmp_path: Path, gated: bool) -> None:
    repo = hub.repos[MODEL]
    repo.token, repo.gated = "hf_right", gated
    wrong = complaint(download(hub, tmp_path, HF_TOKEN="hf_wrong"))
    assert "rejected the token" in wrong
    assert "hf_wrong" not in wrong
    none = complaint(download(hub, tmp_path))
    assert ("is gated; accept its conditions" if gated else "or it is private") in none
    assert "set HF_TOKEN" in none
    assert directory_of(download(hub, tmp_path, HF_TOKEN="hf_right")).name == COMMIT


def test_no_such_model_or_revision(hub: Hub, tmp_path: Path) -> None:
    sentence = complaint(download(hub, tmp_path, "someone/else"))
    assert f"{hub.url} has no model someone/else" in sentence
    for revision in ("v2", "c" * 40):
        sentence = complaint(download(hub, tmp_path, MODEL, "--revision", revision))
        assert f"{MODEL} has no revision {revision}" in sentence
    assert "is neither an existing directory nor a Hub id" in complaint(
        download(hub, tmp_path, "some one/else")
    )
    assert "does not exist" in complaint(download(hub, tmp_path, "nothing"))


def test_no_network(hub: Hub, tmp_path: Path) -> None:
    away = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    sentence = complaint(download(hub, tmp_path, **away))
    assert "http://127.0.0.1:9 cannot be reached" in sentence
    assert "HF_ENDPOINT" in sentence
    sentence = complaint(download(hub, tmp_path, HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE forbids downloads" in sentence
    hub.status = 500
    assert "returned status 500" in complaint(download(hub, tmp_path))


def test_wrong_files(hub: Hub, tmp_path: Path) -> None:
    files = hub.repos[MODEL].commits[COMMIT]
    weights = files.pop("model.safetensors")
    assert "has no safetensors file" in complaint(download(hub, tmp_path))
    hub.repos["someone/other"] = Repo({COMMIT: {"model.safetensors": weights}}, {"main": COMMIT})
    assert "has no config.json" in complaint(download(hub, tmp_path, "someone/other"))
    assert hub.asked("GET", "/resolve/") == hub.asked("GET", "/store/") == []


def test_a_disk_too_small(hub: Hub, tmp_path: Path) -> None:
    hub.sizes["model.safetensors"] = 1 << 60
    sentence = complaint(download(hub, tmp_path))
    assert "needs 1152921504.61 GB in" in sentence
    assert "HF_HOME" in sentence
    assert hub.asked("GET", "/store/") == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left in"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied; set HF_HOME"),
        (httpx2.ReadTimeout("timed out"), "cannot be reached"),
        (OSError("Consistency check failed: file should be of size 9"), "could not be downloaded"),
    ],
)
def test_what_cannot_be_provoked_here(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError) as refused:
        find_checkpoint(MODEL)
    sentence = str(refused.value)
    assert words in sentence
    assert "\n" not in sentence


def test_local_directories(tmp_path: Path) -> None:
    assert find_checkpoint(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(str(tmp_path / "no" / "such"))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file"):
        find_checkpoint(str(file))


def test_the_server_downloads_and_serves(hub: Hub, tmp_path: Path) -> None:
    given: dict[str, Any] = environment(hub, tmp_path, HF_HUB_OFFLINE="0")
    flags = ("--model", MODEL, "--revision", "v1", "--max-model-len", "64")
    live = start_server(*flags, "--log-format", "json", **given)
    assert httpx2.get(f"{live.url}/info").status_code == 200
    assert live.stop() == 0
    assert all(line.startswith("{") for line in live.log), "".join(live.log)
    assert (tmp_path / "hub").is_dir()
    assert hub.asked("GET", "/store/")
