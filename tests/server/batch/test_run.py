"""How a batch begins and ends: bad starts, signals in the middle, and an engine that dies."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.batch.jobs import FAULTY, SERVER, body, by_id, command, request, run, write
from tests.support.servers.faulty_server import DECODE, KILL, SLOW
from tests.support.servers.live_server import ROOT
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_nothing_is_lost_or_done_twice_when_it_is_ended(tiny: Path, tmp_path: Path) -> None:
    """SIGTERM, then SIGKILL, then to the end; and no more of the input is read than is needed."""
    lines = [
        request(f"line {number}", {**body(max_tokens=40), "metadata": {"x": "y" * 20_000}})
        for number in range(400)
    ]
    write(tmp_path / "in.jsonl", lines)
    job = command(tiny, tmp_path, "--max-num-seqs", "4", "--log-format", "json")

    process = start(job, tmp_path, 1)
    process.send_signal(signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    if sys.platform == "linux":
        begun = len((tmp_path / "out.jsonl").read_bytes().splitlines()) + 8
        longest = begun * (len(json.dumps(lines[-1])) + 1)
        assert read_of_input(process, tmp_path) <= longest + io.DEFAULT_BUFFER_SIZE
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted by SIGTERM; run the batch again for the remaining lines" in log
    first = by_id(tmp_path)  # every line is whole
    assert 0 < len(first) < len(lines)

    process = start(job, tmp_path, len(first) + 20)
    process.kill()
    process.communicate(timeout=300)
    out = tmp_path / "out.jsonl"
    out.write_bytes(out.read_bytes()[:-10])
    done = run(job)
    assert done.returncode == 0, done.stderr
    found = by_id(tmp_path)
    assert found.keys() == {line["custom_id"] for line in lines}
    assert all(result["response"]["status_code"] == 200 for result in found.values())
    assert {name: found[name] for name in first} == first


def start(job: list[str | Path], folder: Path, number: int) -> subprocess.Popen[str]:
    """Start a run and wait until the output has a number of lines."""
    process = subprocess.Popen(
        job, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out = folder / "out.jsonl"
    wait(process, lambda: out.exists() and out.read_bytes().count(b"\n") >= number)
    return process


def wait(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait until a run has come so far; one that ends before, or has not after minutes, is a fault."""

    def so_far() -> bool:
        if condition():
            return True
        if process.poll() is not None:
            pytest.fail(process.communicate()[1])
        return False

    try:
        eventually(so_far, seconds=120)
    except pytest.fail.Exception:
        process.kill()
        raise


def read_of_input(process: subprocess.Popen[str], folder: Path) -> int:
    """How many bytes of the input a run has read."""
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        if descriptor.resolve() == (folder / "in.jsonl").resolve():
            info = Path(f"/proc/{process.pid}/fdinfo/{descriptor.name}").read_text()
            return int(info.split("pos:")[1].split()[0])
    return 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_signal_after_the_last_line_leaves_nothing_out(tiny: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [request(name, body(seed=SLOW)) for name in "ab"])
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write("\n \n\n")
    process = start(command(tiny, tmp_path, "--max-num-seqs", "1", program=FAULTY), tmp_path, 0)
    wait(process, lambda: read_of_input(process, tmp_path) > 0)
    process.send_signal(signal.SIGTERM)
    out, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert out.startswith("2 answered, ")


def test_a_fault_is_left_for_another_run_and_a_dead_engine_ends_the_run(
    tiny: Path, tmp_path: Path
) -> None:
    lines = [request(f"line {number}", body(seed=number)) for number in range(20)]
    lines[3]["body"] = body(seed=DECODE)
    lines.append(request("deadly", body(seed=KILL)))
    write(tmp_path / "in.jsonl", lines)
    job = command(tiny, tmp_path, "--max-num-seqs", "2", program=FAULTY)
    done = run(job)
    assert done.returncode == 1
    assert "phi3v-server: the engine has stopped" in done.stderr
    assert "run the batch again for the remaining lines" in done.stderr
    found = by_id(tmp_path)
    assert found
    assert not found.keys() & {"deadly", "line 3"}
    assert "line 4 will be retried by the next run: " in done.stderr
    assert "0 failed, 1 left" in done.stdout
    assert not any(result["error"] for result in found.values())
    again = run(command(tiny, tmp_path, "--max-num-seqs", "2"))
    assert again.returncode == 0, again.stderr
    assert len(by_id(tmp_path)) == len(lines)


@pytest.mark.parametrize("case", ["missing", "same", "other", "locked", "folder", "model"])
def test_bad_starts_end_in_one_sentence(case: str, tmp_path: Path) -> None:
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(given, [request("line", body())])
    model = "/no/such/place" if case == "model" else "demo"
    if case == "missing":
        given.unlink()
    elif case == "same":
        out.symlink_to(given)
    elif case == "other":
        out.write_text("dear diary")
    elif case == "folder":
        out.mkdir()
    lock = os.open(out, os.O_RDWR | os.O_CREAT) if case == "locked" else None
    if lock is not None:
        fcntl.flock(lock, fcntl.LOCK_EX)
    done = run([sys.executable, *SERVER, "batch", "--model", model, given, out])
    if lock is not None:
        os.close(lock)
    complaints = [line for line in done.stderr.splitlines() if line.startswith("phi3v-server: ")]
    assert done.returncode == (2 if case == "missing" else 1)
    message = {
        "missing": "phi3v-server: INPUT: Path does not point to a file, got ",
        "same": "is the input; choose another output file",
        "other": "line 1 of",
        "locked": "is in use by another batch",
        "folder": "Is a directory",
        "model": "/no/such/place does not exist",
    }[case]
    assert len(complaints) == 1, done.stderr
    assert message in complaints[0]
    if case == "other":
        assert out.read_text() == "dear diary"
    assert case == "missing" or json.loads(given.read_text())["custom_id"] == "line"
