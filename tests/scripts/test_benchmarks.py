"""The benchmarks run; what they measure is for whoever runs them in earnest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.__main__ import ALONE, NAMES
from scripts.benchmarks.harness.load import text

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_benchmark_runs_and_reports(tmp_path: Path) -> None:
    flags = ["--smoke", "--server-flags", "--dtype", "float32", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks", "all", *ALONE, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in [*NAMES, *ALONE]:
        figures = json.loads((tmp_path / f"{name}.json").read_text())["figures"]
        assert figures
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert f"## {name}: " in done.stdout
        promised = [f for f in figures if f["what"].startswith(("leaked", "failed", "answers"))]
        assert all(figure["met"] for figure in promised), promised


def test_prompts_of_the_load_client_are_as_long_as_asked_for(tiny: Path) -> None:
    from model.phi3v.inputs.chat import Message
    from model.phi3v.inputs.processing import Processor

    processor = Processor.from_checkpoint(tiny)
    prompts = [processor([Message("user", text(100, 0, number))], 200) for number in range(20)]
    assert all(abs(len(prompt.token_ids) - 100) <= 2 for prompt in prompts)
    assert len({tuple(prompt.token_ids) for prompt in prompts}) == 20
