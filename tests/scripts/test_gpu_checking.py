"""The check of a GPU, on the CPU: its parts, its report, and what it says where there is no GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.support.engines.cuda_stand_ins import Tape, paged_attention, refuses
from torch.nn.attention import varlen

from model.cpu.linear import microkernel
from model.engine.loading import load as loading
from scripts.benchmarks.harness.report import Report
from scripts.gpu_checking import __main__, device, parity, paths, speed
from tests.support.servers.live_server import ROOT

CPU = torch.device("cpu")
DECODER = "CpuDecoder" if microkernel.supported(False) else "TorchDecoder"  # of float32


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "scripts.gpu_checking"]
    return subprocess.run([*program, *flags], cwd=ROOT, capture_output=True, text=True, check=False)


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
@pytest.mark.timeout(900)
def test_the_same_checks_run_on_the_cpu() -> None:
    done = run("--device", "cpu", "--preset", "tiny")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("# GPU check\n\n- CPU: ")
    assert re.findall(r"^## (\w+): ", done.stdout, re.MULTILINE) == ["parity", "paths", "speed"]
    assert (
        "| float32 answers other than the CPU's, of 6 random | 0 | at most 0 | yes |" in done.stdout
    )
    assert "| What colour is the square? | The square is blue. |" in done.stdout
    assert "| chosen: CUDA graphs | bfloat16 | none |" in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 500  # it is to be read


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.timeout(900)
def test_on_a_gpu() -> None:
    done = run("--preset", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_fast_paths_are_found(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.engine.kv_cache.choice.on_cuda", lambda device: True)
    monkeypatch.setattr(varlen, "varlen_attn", paged_attention)
    monkeypatch.setattr("model.engine.execution.cuda_graphs.CudaCapture", Tape)
    report = paths.check(tiny, CPU, torch.float32)
    assert report.rows == [
        ["paged attention", "bfloat16", "works"],
        ["paged attention", "float16", "works"],
        ["paged attention", "float32", "works"],
        ["chosen: keys and values", "float32", "CudaKVCache"],
        ["chosen: CUDA graphs", "float32", "for 1, 2, 4, 8, 16 rows"],
        ["chosen: decoder", "float32", DECODER],
    ]
    assert report.notes == []


def test_why_a_path_is_not_taken_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.engine.kv_cache.choice.on_cuda", lambda device: True)
    monkeypatch.setattr(varlen, "varlen_attn", refuses)
    report = paths.check(tiny, CPU, torch.float32)
    reason = "RuntimeError: Paged KV cache block size must be divisible by 256"
    assert [row[-1] for row in report.rows] == [
        *[reason] * 3,
        "KVCache",
        "none",
        DECODER,
    ]
    (note,) = report.notes
    assert note.startswith(
        "logged, float32: attention without paging or CUDA graphs, which is slower"
    )
    assert reason in report.markdown()


def test_a_missing_function_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(varlen, "varlen_attn")
    report = paths.check(tiny, CPU, torch.float32)
    assert report.rows[0][-1].startswith("cannot import name 'varlen_attn'")


def test_wrong_answers_are_counted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a GPU that computes wrong, which is not to be had."""
    random = iter([[[1, 2], [3]], [[1, 2], [4]]])
    truth = [f"It is {word}." for *_, word in parity.CASES]
    demo = iter([truth, [truth[0], "?", *truth[2:]], [*truth[:3], "?"]])
    monkeypatch.setattr(parity, "random_answers", lambda *_: next(random))
    monkeypatch.setattr(parity, "demo_answers", lambda *_: next(demo))
    report = parity.check(tiny, CPU, torch.bfloat16)
    assert [(figure.value, figure.met) for figure in report.figures] == [
        (1, False),
        (1, False),
        (3, False),
    ]
    assert "| **no** |" in report.markdown()


def test_a_part_that_fails_is_a_line_of_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a kernel that is missing on a GPU, which is not to be had."""

    def fails(*_: object) -> Report:
        assert "# GPU check\n\n- CPU: " in capsys.readouterr().out  # printed before
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(sys, "argv", ["gpu_check", "--device", "cpu", "--preset", "tiny"])
    monkeypatch.setattr(parity, "check", fails)
    for part in (paths, speed):
        monkeypatch.setattr(part, "check", lambda *_: Report("other", "went on", []))
    assert __main__.main() == 1
    out, err = capsys.readouterr()
    sentence = "RuntimeError: no kernel image is available for execution on the device"
    assert out.startswith(f"## parity: stopped by {sentence}\n\n## other: went on\n")
    assert out.count("## other: went on") == 2
    assert "Traceback" in err


def test_a_gpu_without_bfloat16_serves_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a T4, which emulates it."""
    for major, expected in ((8, "bfloat16"), (7, "float16")):
        found = SimpleNamespace(major=major)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=found: found)
        assert device.name_of(device.fast_dtype(torch.device("cuda"))) == expected
        assert (
            loading.dtype_for("auto", [torch.device("cuda")], {"torch_dtype": "bfloat16"})
            == expected
        )


def test_random_answers_are_as_many_and_as_long_as_said(tiny: Path) -> None:
    answers = parity.random_answers(tiny, "cpu")
    assert len(answers) == len(parity.LENGTHS) + 1
    assert {len(tokens) for tokens in answers} == {parity.NEW_TOKENS}
    crossing = [length for length in parity.LENGTHS if 1024 - parity.NEW_TOKENS < length < 1024]
    assert crossing


def test_speed_is_held_against_the_memorys(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(speed, "step_seconds", lambda engine, batch, steps: 0.01 * batch)
    report = speed.check(tiny, CPU, torch.bfloat16)
    weights = 2 * (2 * (64 * 192 + 64 * 64 + 3 * 64 * 128) + 32064 * 64)
    roof = 1e9 / weights
    assert report.rows == [
        [1, 10.0, 100.0, f"{100 * 100 / roof:.0f} %"],
        [8, 80.0, 100.0, f"{100 * 12.5 / roof:.0f} %"],
    ]


def test_a_copy_is_measured() -> None:
    assert 1e8 < speed.copy_bandwidth(CPU) < 1e13


def test_the_machine_is_described() -> None:
    text = device.describe(CPU)
    assert f"torch {torch.__version__}" in text
    assert all(line.startswith("- ") for line in text.splitlines())
