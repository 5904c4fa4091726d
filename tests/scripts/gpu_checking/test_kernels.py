"""Kernels, graphs and the bytes of steps, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

pytest.importorskip("triton")

from model.demo.random_checkpoint import PRESETS, config_for
from model.engine.config import EngineConfig
from model.gpu import gate, support
from model.phi3v.configuration import Phi3VConfig
from scripts.benchmarks.harness.report import Report
from scripts.gpu_checking import few_steps
from scripts.gpu_checking.engines import (
    Runners,
    fused_network,
    make_engine,
    processor_for,
    random_model,
    start_decoding,
)
from scripts.gpu_checking.options import Options
from scripts.gpu_checking.parts import NotCheckedError, graphs, kernels, steps
from tests.support.engines.gpu_stand_ins import Tape, varlen_attention

CPU = torch.device("cpu")
ON_CPU = Options(CPU, "tiny")
SMALL = EngineConfig(512, max_num_seqs=2, num_blocks=100)


def small_cases(on_gpu: bool) -> list[kernels.Case]:
    return [
        kernels.Case("silu_gate", "5 x 24", partial(kernels._gate, (5, 24))),
        kernels.Case("add_rms_norm", "3 x 40", partial(kernels._norm, (3, 40))),
        kernels.Case(
            "sample_rows", "5", partial(kernels._sample, 5, 1000), dtypes=(torch.float32,)
        ),
    ]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows in float32, with stand-ins for CUDA graphs."""
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attention)
    monkeypatch.setattr("scripts.gpu_checking.options.fast_dtype", lambda device: torch.float32)
    monkeypatch.setattr(graphs, "SIZES", SMALL)
    monkeypatch.setattr("model.engine.policy.GUESSES", (3,))
    monkeypatch.setattr(graphs, "LENGTHS", [20, 7])
    monkeypatch.setattr(graphs, "FILLING", [(2, 0), (1, 3)])
    monkeypatch.setattr(graphs, "PADDED", [(2, 2)])
    monkeypatch.setattr(graphs, "COMPANY", [9, 20])
    monkeypatch.setattr(graphs, "STEPS", 2)


def test_kernels_are_compared_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "cases", small_cases)
    report = kernels.check(ON_CPU)
    assert report.columns == ["kernel", "sizes", "float32", "float16"]
    assert [row[0] for row in report.rows] == ["silu_gate", "add_rms_norm", "sample_rows"]
    assert report.rows[2][-2:] == [0.0, "-"]
    (figure,) = report.figures
    assert figure.met
    assert figure.value > 0


def test_the_first_compilation_is_timed() -> None:
    config = Phi3VConfig(**config_for(PRESETS["tiny"], "tiny"))
    report = Report("kernels", "", [])
    note = kernels._compile(config, ON_CPU, report)
    seconds = report.data["compilation_seconds"]
    assert {"add_rms_norm", "silu_gate", "sample_rows"} <= seconds.keys()
    assert note.startswith(f"first compilation in bfloat16: {sum(seconds.values()):.1f} s for ")


@pytest.mark.parametrize(
    ("kernel", "cell"),
    [
        (lambda gate_up, out: out.zero_(), "x"),
        (lambda gate_up, out: None, torch.inf),  # leaves the memory as it was
        (lambda gate_up, out: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_wrong_kernel_is_noticed(
    kernel: Callable[[Tensor, Tensor], object], cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "cases", small_cases)
    monkeypatch.setattr(gate, "silu_gate", kernel)
    report = kernels.check(ON_CPU)
    (figure,) = report.figures
    assert not figure.met
    assert figure.value > 10
    assert report.rows[0][2] == cell or cell == "x"
    assert report.rows[1][2] <= 1  # the others are checked all the same


def test_unsupported_devices_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.gpu.launch.INTERPRETED", False)
    for check in (kernels.check, graphs.check):
        with pytest.raises(NotCheckedError, match="the kernels run on NVIDIA GPUs"):
            check(ON_CPU)


@pytest.mark.usefixtures("small")
def test_graphs_are_compared_with_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.engine.execution.cuda_graphs.CudaCapture", Tape)
    report = graphs.check(ON_CPU)
    assert [row[:4] for row in report.rows] == [
        ["float32", 2, 1, "yes"],
        ["float32", 1, 4, "yes"],
        ["float32", 2, 3, "no"],
    ]
    assert all(figure.met for figure in report.figures)
    assert [figure.value for figure in report.figures][::2] == [0, 0]


@pytest.mark.usefixtures("small")
def test_a_wrong_graph_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture() -> Callable[[Callable[[], Tensor]], Callable[[], Tensor]]:
        return lambda compute: lambda: compute() * 1.001

    monkeypatch.setattr("model.engine.execution.cuda_graphs.CudaCapture", capture)
    filled, padded, _ = graphs.check(ON_CPU).figures
    assert not filled.met
    assert not padded.met
    assert padded.value == pytest.approx(0.001, rel=0.1)


@pytest.mark.usefixtures("small")
def test_missing_graphs_are_told() -> None:
    with pytest.raises(NotCheckedError, match="there are no CUDA graphs on a CPU"):
        graphs.check(ON_CPU)
    preset, report = PRESETS["tiny"], Report("graphs", "", [])
    model = random_model(preset, CPU, torch.float32)
    graphs._replays(model, processor_for(preset), report, Options(torch.device("cuda"), "tiny"))
    (figure,) = report.figures
    assert (figure.what, figure.met) == ("float32: CUDA graphs (see paths)", False)


@pytest.mark.usefixtures("small")
def test_a_dtype_that_the_kernels_do_not_support_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As float32 on a T4."""
    monkeypatch.setattr("scripts.gpu_checking.options.fast_dtype", lambda device: torch.float16)
    really = support.unsupported_reason

    def reason(config: Any, dtype: torch.dtype, device: Any) -> str | None:
        return "float16 only" if dtype == torch.float32 else really(config, dtype, device)

    monkeypatch.setattr(support, "unsupported_reason", reason)
    monkeypatch.setattr(graphs, "_replays", lambda *_: None)
    report = graphs.check(ON_CPU)
    assert report.notes == ["no float32: float16 only"]
    (figure,) = report.figures
    assert figure.what.startswith("float16, --deterministic")
    assert figure.met  # also without graphs


@pytest.mark.usefixtures("small")
def test_only_the_copy_of_the_tokens_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(graphs, "SAMPLED", graphs.SAMPLED[:1])
    model = random_model(PRESETS["tiny"], CPU, torch.float32)
    report = Report("graphs", "", [])
    assert graphs.waits(model, processor_for(PRESETS["tiny"]), report) == 0
    assert modes[:1] + modes[-1:] == ["error", "default"]
    assert modes[1:-1] == ["default", "error"] * ((len(modes) - 2) // 2)
    assert len(modes) > 2
    assert report.notes == []


@pytest.mark.usefixtures("small")
def test_what_waits_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(*args: object) -> None:
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr("model.engine.execution.step_runner.sample", waits)
    monkeypatch.setattr(graphs, "no_waits", nullcontext)
    monkeypatch.setattr(graphs, "SAMPLED", graphs.SAMPLED[:2])
    model = random_model(PRESETS["tiny"], CPU, torch.float32)
    report = Report("graphs", "", [])
    assert graphs.waits(model, processor_for(PRESETS["tiny"]), report) == 2
    assert "called a synchronizing CUDA operation" in report.notes[0]


def test_the_bytes_of_a_step_are_counted() -> None:
    preset, runners = PRESETS["tiny"], Runners()
    network = fused_network(random_model(preset, CPU, torch.float16))
    engine = make_engine(network, processor_for(preset), SMALL, runners.make, fixed_chunks=True)
    start_decoding(engine, [30, 50], new_tokens=20)
    held = sum(len(sequence) for sequence in engine.scheduler.running)
    traffic = steps.step_traffic(engine, runners)
    assert traffic.keys() == {
        "add_rms_norm_kernel",
        "split_rope_store_kernel",
        "paged_decode_kernel",
        "silu_gate_kernel",
    }
    keys_and_values = 2 * preset.num_layers * held * preset.hidden_size * 2
    assert keys_and_values < traffic["paged_decode_kernel"] < 1.1 * keys_and_values


def test_random_weights_are_the_same_each_time_and_of_one_scale() -> None:
    one, other = (random_model(PRESETS["tiny"], CPU, torch.bfloat16) for _ in range(2))
    assert one.dtype == torch.bfloat16
    for (name, weight), same in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, same), name
        assert weight.isfinite().all(), name
    projection = one.model.layers[0].mlp.down_proj.weight
    assert float(projection.float().std()) == pytest.approx(projection.shape[1] ** -0.5, rel=0.05)
    assert torch.get_default_dtype() == torch.float32


def test_a_few_steps_for_the_sanitizer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["few_steps", "cpu"])
    monkeypatch.setattr(few_steps, "fast_dtype", lambda device: torch.float32)
    monkeypatch.setattr(few_steps, "SAMPLED", replace(few_steps.SAMPLED, max_tokens=2))
    few_steps.main()
    assert [len(tokens) for tokens in eval(capsys.readouterr().out)] == [2, 2]
