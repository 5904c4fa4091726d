"""The parts that need no kernels, and those whose programs and cards are not to be had here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.demo.random_checkpoint import PRESETS, config_for
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.inputs.processing import Processor
from scripts.benchmarks.harness import driver
from scripts.benchmarks.harness.cards import CARDS, ModelCosts, card_like
from scripts.benchmarks.harness.report import Report
from scripts.gpu_checking.options import Options
from scripts.gpu_checking.parts import (
    acceptance,
    parity,
    paths,
    peer,
    pictures,
    sanitizer,
    steps,
)
from scripts.gpu_checking.profiling import Kernel, group_of

CPU = torch.device("cpu")
ON_CPU = Options(CPU, "tiny")
ON_GPU = Options(torch.device("cuda"), "tiny")
VLLM = """
import json, sys, time
class SamplingParams:
    def __init__(self, **given):
        assert given["ignore_eos"]
        self.tokens = given["max_tokens"]
class LLM:
    def __init__(self, model, load_format, **given):
        assert load_format == "dummy"
        config = json.load(open(model + "/config.json"))
        assert config["architectures"] == ["Phi3ForCausalLM"]
        assert 0 < given["gpu_memory_utilization"] < 1
    def generate(self, prompts, params, use_tqdm):
        assert {len(each["prompt_token_ids"]) for each in prompts} == {1000}
        time.sleep(0.002 * params.tokens)
"""


def test_paths_are_told() -> None:
    report = paths.check(ON_CPU)
    rows = {(path, dtype): found for path, dtype, found in report.rows}
    assert rows["Triton", ""][0].isdigit() or rows["Triton", ""] == "not installed"
    assert rows["attention of prompts", "float32"] == "sdpa: varlen_attn supports 16 bits only"
    assert rows["attention of prompts", "bfloat16"].startswith("sdpa: ")
    for dtype in ("bfloat16", "float16", "float32"):
        assert rows["chosen: CUDA graphs", dtype] == "none"
        assert rows["chosen: decoder", dtype] in ("CpuDecoder", "TorchDecoder")


def test_why_a_path_is_not_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.phi3v.decoder_cpu.unsupported_reason", lambda model: "no such CPU")
    really = driver.load

    def load(directory: Path, dtype: str, *more: object, **options: object) -> object:
        if dtype == "float16":
            raise RuntimeError("out of memory")
        return really(directory, dtype, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(paths, "load", load)
    report = paths.check(ON_CPU)
    assert ["chosen: engine", "float16", "RuntimeError: out of memory"] in report.rows
    assert ["chosen: decoder", "float32", "TorchDecoder"] in report.rows
    line = "logged, float32: using the uncompiled decoder, which is slower: no such CPU"
    assert line in report.notes


def test_wrong_answers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a GPU that computes wrong, which is not to be had."""
    random = iter([[[1, 2], [3]], [[1, 2], [4]]])
    truth = [f"It is {word}." for *_, word in parity.CASES]
    demo = iter([truth, [truth[0], "?", *truth[2:]], [*truth[:3], "?"]])
    monkeypatch.setattr(parity, "random_answers", lambda *_: next(random))
    monkeypatch.setattr(parity, "golden_answers", lambda *_: ([[1], [2]], [[5], [6]]))
    monkeypatch.setattr(parity, "demo_answers", lambda *_: next(demo))
    report = parity.check(ON_CPU)
    assert [(figure.value, figure.met) for figure in report.figures] == [
        (1, False),
        (2, False),
        (1, False),
        (3, False),
    ]
    assert "| **no** |" in report.markdown()


def test_random_answers_cross_the_regimes(tiny: Path) -> None:
    answers = parity.random_answers(tiny, "cpu")
    assert len(answers) == len(parity.LENGTHS) + 1
    assert {len(tokens) for tokens in answers} == {parity.NEW_TOKENS}
    assert any(1024 - parity.NEW_TOKENS < length < 1024 for length in parity.LENGTHS)


def test_steps_are_held_against_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(steps, "product_rate", lambda device, dtype: 1e15)
    monkeypatch.setattr(steps, "_measure", lambda engine, rows, length: 0.01 * rows)
    report = steps.check(ON_CPU)
    weights = 2 * (2 * (64 * 192 + 64 * 64 + 3 * 64 * 128) + 32064 * 64)
    rows = []
    for count in (1, 4):
        least = (weights + count * 64 * 2 * 2 * 64 * 2) / 1e9
        share = f"{least / (0.01 * count):.0%}"
        rows.append([count, 64, 10.0 * count, 100.0, pytest.approx(1000 * least), share, "-"])
    assert report.rows == rows


def test_products_limit_steps_of_many_rows() -> None:
    costs = ModelCosts.of(Phi3VConfig(**config_for(PRESETS["full"], "official")))
    limits = steps.Limits(bandwidth=1e20, products=1e12)
    flops = costs.token_flops + costs.head_flops + 500 * costs.attention_flops
    assert limits.seconds(costs, 1, 256, 500) == pytest.approx(256 * flops / 1e12)


def test_rows_are_fewer_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "tokens_that_fit", lambda network: 26_000)
    network: object = None
    found = steps._fitting(network, {1: 2400, 64: 2400, 256: 500})  # type: ignore[arg-type]
    assert found == [(1, 2400), (10, 2400), (37, 500)]


def test_kernels_are_named_with_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [Kernel("matrix products", 0.006, 129), Kernel("paged_decode_kernel", 0.002, 32)]
    monkeypatch.setattr(steps, "profile", lambda compute, times: kernels)
    monkeypatch.setattr(steps, "step_traffic", lambda *_: {"paged_decode_kernel": 4e9})
    costs = ModelCosts(12e9, 0, 0, 0, 0)
    decoder = SimpleNamespace(fuses_attention=True)
    engine = SimpleNamespace(
        scheduler=SimpleNamespace(running=[None] * 16),
        network=SimpleNamespace(decoder=decoder, dtype=torch.bfloat16),
    )
    report = Report("steps", "", [])
    steps._break_down(engine, SimpleNamespace(), costs, report)  # type: ignore[arg-type]
    assert report.notes == [
        "16 rows: kernels take 8 ms in 161 launches: matrix products 6 ms (75%, 129 launches, "
        "2000 GB/s); paged_decode_kernel 2 ms (25%, 32 launches, 2000 GB/s)"
    ]


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("paged_decode_kernel", "paged_decode_kernel"),
        ("nvjet_hsh_64x8_64x16_4x1_v_bz_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matrix products"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16>(Params)", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16>(int)", "matrix products"),
        ("void gemvNSP_kernel<__nv_bfloat16, 1>(int)", "matrix products"),
        (
            "void flash::flash_fwd_kernel<Traits<96, cutlass::bfloat16_t>>(Params)",
            "flash_fwd_kernel",
        ),
        ("void at::native::(anonymous namespace)::index_kernel<4>(int)", "index_kernel"),
        ("Memcpy HtoD (Pinned -> Device)", "Memcpy HtoD"),
    ],
)
def test_kernels_are_grouped(kernel: str, name: str) -> None:
    assert group_of(kernel) == name


@pytest.mark.parametrize(
    ("name", "gib", "card"),
    [
        ("NVIDIA H100 80GB HBM3", 79.2, "H100"),
        ("NVIDIA H200", 139.8, "H200"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40"),
        ("NVIDIA A100 80GB PCIe", 79.3, "A100-80"),
        ("NVIDIA L4", 22.0, "L4"),
        ("NVIDIA L40S", 44.4, None),
        ("NVIDIA H100 NVL", 93.1, None),  # another bandwidth
        ("Tesla T4", 14.6, None),
    ],
)
def test_cards_are_known_by_their_names(name: str, gib: float, card: str | None) -> None:
    assert card_like(name, gib * 2**30) == (CARDS[card] if card else None)


def test_pictures_are_timed() -> None:
    report = pictures.check(ON_CPU)
    assert report.title.startswith("prompts of 2375 tokens about pictures of 1900 x 1069")
    seconds = report.data["seconds"]
    alone, beside, gaps, longest = seconds.values()
    assert (len(alone), len(beside), len(longest)) == (3, 3, 3)
    assert len(gaps) == pictures.STREAMS * (pictures.NORMAL - 1)
    assert all(gap < ttft for gap, ttft in zip(longest, beside, strict=True))
    assert max(longest) >= min(gaps)


def test_the_documented_questions_have_the_documented_lengths(official: Path) -> None:
    processor = Processor.from_checkpoint(official)
    for question in acceptance.questions(None):
        assert len(processor(question.messages, 4000).token_ids) == question.public


def test_a_checkpoint_is_asked(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose tokenizer is not the public one."""
    monkeypatch.setattr(acceptance, "NEW_TOKENS", 3)
    picture = tiny.parent / "picture.png"
    acceptance.draw_chart().save(picture)
    report = acceptance.check(Options(CPU, "tiny", model=tiny, picture=picture))
    assert [row[2:] for row in report.rows] == [[23, 19, 3], [2384, 2380, 3]]
    assert report.notes[0].startswith("How many languages are in the world? **")
    (figure,) = report.figures
    assert (figure.value, figure.met) == (2, False)


def test_without_a_checkpoint_nothing_is_asked() -> None:
    report = acceptance.check(ON_CPU)
    assert report.notes == ["needs the official checkpoint: --model FOLDER"]
    assert report.figures == []


@pytest.mark.parametrize(("errors", "met"), [(0, True), (2, False)])
def test_what_the_sanitizer_finds_is_told(
    errors: int, met: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "compute-sanitizer"
    summary = f"========= ERROR SUMMARY: {errors} errors"
    program.write_text(f'#!/bin/sh\necho "========= Invalid read of size 2"\necho "{summary}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    report = sanitizer.check(ON_GPU)
    (figure,) = report.figures
    assert (figure.value, figure.met) == (errors, met)
    assert ("========= Invalid read of size 2" in report.notes) == (errors > 0)


def test_programs_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(total_memory=80e9, major=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setenv("PATH", "/nowhere")
    assert sanitizer.check(ON_GPU).notes == [
        "not checked: needs compute-sanitizer, which is not installed"
    ]
    assert peer.check(ON_GPU).notes == ["not checked: needs vLLM, which is not installed"]
    assert peer.check(ON_CPU).notes == ["not checked: needs a GPU"]


def test_vllm_gets_the_same_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that takes two milliseconds a token."""
    (tmp_path / "vllm.py").write_text(VLLM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    properties = SimpleNamespace(total_memory=80e9, major=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(peer, "free_memory", lambda device: 40e9)
    rates = peer._theirs(ON_GPU, [1, 4])
    assert rates.keys() == {1, 4}
    assert rates[1] == pytest.approx(500, rel=0.3)
    assert rates[4] == pytest.approx(2000, rel=0.3)
    assert sys.modules.get("vllm") is None
