"""The plan of a GPU's decode step: launches and bytes as counted hold their limits."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from model.demo.random_checkpoint import PRESETS, config_for
from model.phi3v.configuration import Phi3VConfig
from scripts.benchmarks.suites.gpu_plan import MOST_BYTES, MOST_LAUNCHES, count_step
from tests.support.servers.live_server import ROOT


def official() -> Phi3VConfig:
    return Phi3VConfig(**config_for(PRESETS["full"], "full"))


@pytest.mark.parametrize(("rows", "length"), [(1, 100), (64, 2400)])
def test_a_step_is_nine_kernels_a_layer(rows: int, length: int) -> None:
    config = official()
    step = count_step(config, rows, length)
    assert config.num_hidden_layers == 32
    assert step.launches["paged_decode_kernel"] == 32
    assert step.launches["linear"] == 4 * 32 + 1
    assert step.launches.total() <= MOST_LAUNCHES


def test_a_layer_more_is_nine_launches_more() -> None:
    config = official()
    config.num_hidden_layers = 1
    one = count_step(config, 4, 30).launches.total()
    config.num_hidden_layers = 3
    assert count_step(config, 4, 30).launches.total() == one + 2 * 9


def test_the_command_prints_json(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        ["scripts/bench", "gpu-plan", "--json", "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    plan = json.loads(done.stdout)
    assert plan["launches_per_step"] <= MOST_LAUNCHES
    assert 0.95 < plan["bytes_ratio"] <= MOST_BYTES
    for by_rows in plan["predicted"].values():
        assert all(limits["ms"] >= limits["roof_ms"] for limits in by_rows.values())
