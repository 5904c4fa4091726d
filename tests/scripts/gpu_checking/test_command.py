"""The command: parts in processes of their own, and machines with and without what it needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.benchmarks.harness.report import Figure, Report
from scripts.gpu_checking import __main__, run_part
from scripts.gpu_checking.device import copy_bandwidth, describe, fast_dtype, product_rate
from scripts.gpu_checking.options import Options
from scripts.gpu_checking.parts import NAMES, NotCheckedError, paths
from tests.support.servers.live_server import ROOT

CPU = torch.device("cpu")
ON_CPU = Options(CPU, "tiny")
# Not on a machine that has torch and transformers alone, and no network.
MISSING = (
    "numba",
    "llvmlite",
    "matplotlib",
    "torchvision",
    "pip",
    "pydantic",
    "fastapi",
    "aiohttp",
)


def run(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "scripts.gpu_checking", *flags]
    return subprocess.run(
        program, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | environment
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stdout == ""
    sentence = (
        r"gpu_check: torch \S+ .*finds no GPU.*; --device cpu runs the same checks on the CPU\n"
    )
    assert re.fullmatch(sentence, done.stderr)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_parts_run_on_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    flags = ("--device", "cpu", "--preset", "tiny", "--json", str(file), "--seconds", "1400")
    done = run(*flags, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.startswith("# GPU check\n\n- CPU: ")
    assert tuple(re.findall(r"^## (\w+): ", done.stdout, re.MULTILINE)) == NAMES
    for line in (
        "| largest error / tolerance | ",
        "| float32 answers other than the CPU's, of 6 random | 0 | at most 0 | yes |",
        "| float32 answers other than the original's, of 7 | 0 | at most 0 | yes |",
        "| What colour is the square? | The square is blue. |",
        "| kernels | float16 | supported |",
        "## graphs: not checked: there are no CUDA graphs on a CPU",
    ):
        assert line in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 500  # it is to be read
    content = json.loads(file.read_text("utf-8"))
    assert "torch" in content["machine"]["CPU"]
    assert tuple(part["name"] for part in content["parts"]) == NAMES


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.timeout(900)
def test_on_a_gpu() -> None:
    done = run("--preset", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_a_part_needs_no_other_packages() -> None:
    program = f"""
import sys
for name in {MISSING}:
    sys.modules[name] = None
sys.argv[1:] = ["steps", "--device", "cpu", "--preset", "tiny"]
from scripts.gpu_checking.run_part import main
status = main()
for name in {NAMES}:
    __import__("scripts.gpu_checking.parts." + name)
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("## steps: decode steps of the size tiny")


def test_a_part_that_fails_is_a_line_of_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(options: Options) -> Report:
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(paths, "check", fails)
    good, data = run_part.run("paths", ON_CPU)
    said = "RuntimeError: no kernel image is available for execution on the device"
    assert not good
    assert data == {"name": "paths", "stopped_by": said}
    out, err = capsys.readouterr()
    assert out == f"## paths: stopped by {said}\n\n"
    assert "Traceback" in err


@pytest.mark.parametrize(("device", "good"), [("cpu", True), ("cuda", False)])
def test_what_cannot_be_checked_is_a_failure_on_a_gpu(
    device: str, good: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(options: Options) -> Report:
        raise NotCheckedError("the package triton is not installed")

    monkeypatch.setattr(paths, "check", refuses)
    assert run_part.run("paths", Options(torch.device(device), "tiny"))[0] == good
    said = "## paths: not checked: the package triton is not installed\n\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(("value", "good"), [(0, True), (1, False)])
def test_a_wrong_figure_is_a_failure(
    value: int, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = Figure("wrong answers", value, "at most", 0)
    report = Report("paths", "of a test", ["a"], rows=[[1]], figures=[figure])
    monkeypatch.setattr(paths, "check", lambda options: report)
    found, data = run_part.run("paths", ON_CPU)
    assert found == good
    assert data["figures"][0]["met"] == good
    assert data["rows"] == [[1]]


def test_the_other_parts_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A part may be killed, or write nothing."""
    ends = iter(["import os; os.kill(os.getpid(), 11)", "print('## paths: done')"])

    def stand_in(name: str, *rest: object) -> bool:
        command = [sys.executable, "-c", next(ends)]
        return really(name, command, dict(os.environ), 60)

    really = __main__._run
    monkeypatch.setattr(__main__, "_run", stand_in)
    file = tmp_path / "report.json"
    flags = ["--device", "cpu", "--parts", "kernels", "paths", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *flags])
    assert __main__.main() == 1
    out = capfd.readouterr().out
    assert "## kernels: ended with status -11\n" in out
    assert "## paths: done\n" in out
    parts = json.loads(file.read_text("utf-8"))["parts"]
    assert parts == [{"name": "kernels"}, {"name": "paths"}]


def test_the_time_is_bounded(capfd: pytest.CaptureFixture[str]) -> None:
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert not __main__._run("steps", sleeps, dict(os.environ), 1.0)
    assert not __main__._run("peer", sleeps, dict(os.environ), 0.1)
    out = capfd.readouterr().out
    assert "## steps: stopped after 1 s, because the time is over\n" in out
    assert "## peer: not checked: the time is over (--seconds)\n" in out


@pytest.mark.parametrize("has_torch", [True, False])
def test_nothing_is_installed_where_python_has_torch(tmp_path: Path, has_torch: bool) -> None:
    folder = tmp_path / "scripts"
    folder.mkdir()
    program = folder / "gpu_check"
    program.write_bytes((ROOT / "scripts" / "gpu_check").read_bytes())
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit {0 if has_torch else 1}\necho "$0" "$@"\n')
    setup = folder / "setup"
    setup.write_text("#!/bin/sh\necho setup\nmkdir -p .venv/bin && cp python3 .venv/bin/python\n")
    for file in (program, python, setup):
        file.chmod(0o755)
    done = subprocess.run(
        [program, "--parts", "paths"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    *before, ran = done.stdout.splitlines()
    assert before == ([] if has_torch else ["setup"])
    used = str(python) if has_torch else ".venv/bin/python"
    assert ran.endswith(f"{used} -m scripts.gpu_checking --parts paths")


@pytest.mark.parametrize(("major", "dtype"), [(8, torch.bfloat16), (7, torch.float16)])
def test_a_gpu_without_bfloat16_is_checked_in_float16(
    major: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a T4, which emulates it."""

    class Properties:
        pass

    Properties.major = major  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert fast_dtype(torch.device("cuda")) == dtype


def test_limits_are_measured() -> None:
    assert 1e8 < copy_bandwidth(CPU) < 1e13
    assert 1e8 < product_rate(CPU, torch.float32) < 1e15


def test_the_machine_is_described() -> None:
    facts = describe(CPU)
    assert f"torch {torch.__version__}" in facts["CPU"]
    assert facts["GPU"] == "none (the CPU was checked instead)"
