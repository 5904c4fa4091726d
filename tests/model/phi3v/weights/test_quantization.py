"""Quantized weights: what rounding costs, that every way computes the same, and how ways are chosen."""

from __future__ import annotations

import logging
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.demo.random_checkpoint import PRESETS, write_checkpoint
from model.engine.config import LoadOptions, Quantization
from model.engine.engine import Engine
from model.engine.loading.load import load_engine
from model.engine.request import SamplingParams, TextDelta
from model.errors import CheckpointError
from model.phi3v.decoder import TorchDecoder
from model.phi3v.inputs.processing import PromptInputs
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.weights import quantization
from model.phi3v.weights.quantization import (
    GROUP,
    Int4Linear,
    Int8Linear,
    QuantizedLinear,
    quantize_linears,
    quantized_bytes,
    use_torch_kernels,
)
from tests.support.engines.quantized import SCHEMES, logits
from tests.support.engines.without_kernels import without_kernels
from tests.support.servers.live_server import API_KEY, check_log, start_server
from tests.support.servers.wire import chat

KINDS = {"int8": Int8Linear, "int4": Int4Linear}
DRIFT = {"int8": 0.03, "int4": 0.25}  # of the logits' range, on random weights


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounding(scheme: Quantization) -> None:
    """To the nearest of 255 numbers per output, or of 16 per group; in as many bytes as are planned."""
    torch.manual_seed(0)
    weight = torch.randn(50, 96) * torch.logspace(-6, 2, 50)[:, None]
    weight[3], weight[4] = 0, 5
    layer = QuantizedLinear(weight, scheme)
    groups = weight.unflatten(1, (-1, 96 if scheme == "int8" else GROUP))
    low, high = groups.aminmax(dim=2, keepdim=True)
    step = groups.abs().amax(2, keepdim=True) / 127 if scheme == "int8" else (high - low) / 15
    # Scales and offsets are themselves rounded, to bfloat16; the numbers at the ends then miss.
    bound = 0.51 * step + (high - low).maximum(high.abs()).maximum(low.abs()) / 128
    assert ((layer.dequantized().unflatten(1, groups.shape[1:]) - groups).abs() <= bound).all()
    assert not layer.dequantized()[3].any()
    kept = layer.values.nbytes + layer.scales.nbytes + layer.offsets.nbytes
    assert kept == quantized_bytes((50, 96), scheme) < 2 * weight.numel()


@torch.inference_mode()
@pytest.mark.parametrize("scheme", SCHEMES)
def test_torchs_kernels_compute_the_same(scheme: Quantization) -> None:
    layer = QuantizedLinear(torch.randn(96, 128), scheme)
    for rows in (1, 3, 8, 70):
        x = torch.randn(rows, 128).bfloat16()
        expected = x.float() @ layer.dequantized().T
        torch.testing.assert_close(KINDS[scheme](layer)(x).float(), expected, rtol=0.02, atol=0.2)
        torch.testing.assert_close(layer(x).float(), expected, rtol=0.02, atol=0.2)


def quantized(directory: Path, scheme: Quantization, dtype: torch.dtype) -> Phi3VForCausalLM:
    model = Phi3VForCausalLM.from_pretrained(directory, dtype="auto").eval().requires_grad_(False)
    quantize_linears(model, scheme)
    model.to(dtype)
    return model


def cuda_int4pack(values: Tensor, inner_tiles: int) -> Tensor:
    """Stands in for CUDA's packing, with what it demands; the panels are left as they are."""
    assert values.dtype is torch.uint8
    assert values.is_contiguous()
    assert inner_tiles in (2, 4, 8)
    assert values.shape[0] % 8 == 0
    assert 2 * values.shape[1] % (16 * inner_tiles) == 0
    return values


def cuda_int4_product(x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
    """Stands in for CUDA's product of 4 bits, with what it demands."""
    assert x.dtype is scales.dtype is torch.bfloat16
    assert {y.is_contiguous() for y in (x, packed, scales)} == {True}
    assert group in (32, 64, 128, 256)
    outputs, inputs = packed.shape[0], 2 * packed.shape[1]
    assert scales.shape == (inputs // group, outputs, 2)
    numbers = torch.stack([packed >> 4, packed & 15], -1).flatten(1).float() - 8
    scale, offset = scales.float().transpose(0, 1).repeat_interleave(group, 1).unbind(-1)
    return (x.float() @ (numbers * scale + offset).T).bfloat16()


class OnCuda(Int4Linear):
    """The branch for CUDA, on the CPU: the layer says that it is elsewhere."""

    def __init__(self, layer: QuantizedLinear) -> None:
        class Elsewhere:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor, self.device = tensor, torch.device("cuda")

        stand_in: Any = type("Layer", (), {})()
        stand_in.scales, stand_in.offsets = layer.scales, layer.offsets
        stand_in.values = Elsewhere(layer.values)
        super().__init__(stand_in)


@torch.inference_mode()
def test_the_branch_for_cuda(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four bits are packed and multiplied by other functions there."""

    def pack(values: Any, inner_tiles: int) -> Tensor:
        return cuda_int4pack(values.tensor, inner_tiles)

    monkeypatch.setattr(torch, "_convert_weight_to_int4pack", pack)
    monkeypatch.setattr(torch, "_weight_int4pack_mm", cuda_int4_product)
    expected = logits(TorchDecoder(quantized(tiny, "int4", torch.bfloat16)))
    monkeypatch.setattr(quantization, "Int4Linear", OnCuda)
    model = quantized(tiny, "int4", torch.bfloat16)
    use_torch_kernels(model)
    assert len([m for m in model.modules() if isinstance(m, OnCuda)]) == 4 * 2
    torch.testing.assert_close(logits(TorchDecoder(model)), expected, rtol=0.05, atol=0.1)


@torch.inference_mode()
@pytest.mark.parametrize("fault", ["wrong", "missing", "float32"])
def test_kernels_that_do_not_work_are_not_used(
    tiny: Path, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Tensor) -> Tensor:
        if fault == "missing":
            raise NotImplementedError("no kernel for this device")
        return args[0] @ args[1].T.to(args[0].dtype)

    if fault != "float32":
        monkeypatch.setattr(torch, "_weight_int8pack_mm", broken)
    model = quantized(tiny, "int8", torch.float32 if fault == "float32" else torch.bfloat16)
    expected = logits(TorchDecoder(model))
    with caplog.at_level(logging.WARNING):
        use_torch_kernels(model)
    assert "dequantizing weights at each use, which is slow" in caplog.text
    assert torch.equal(logits(TorchDecoder(model)), expected)


def collect(engine: Engine, prompts: list[list[int]]) -> list[list[tuple[int, float]]]:
    """Token ids and log probabilities of each answer."""
    found: list[list[tuple[int, float]]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
        engine.add(number, PromptInputs(prompt), params)
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output.result, TextDelta), output.result
            found[output.key[0]] += [
                (token, logprob.chosen.logprob)
                for token, logprob in zip(
                    output.result.token_ids, output.result.logprobs or (), strict=True
                )
            ]
    return found


PROMPTS = [[300 + 7 * i * (n + 1) % 9000 for i in range(n)] for n in (5, 33, 150, 600)]


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_answers_are_the_same_alone_and_in_company(
    tiny: Path, scheme: Quantization, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: by the CPU's kernels always, elsewhere in deterministic mode."""
    if not kernels:
        without_kernels(monkeypatch)
    options = LoadOptions("", dtype="bfloat16", quantization=scheme, max_model_len=2048)
    engine = load_engine(tiny, replace(options, deterministic=not kernels))
    if kernels and not engine.network.decoder.batch_invariant:
        pytest.skip("this CPU multiplies faster, or only, without the kernels")
    # A step's worth where torch computes: what several prompts share of a step cuts longer ones
    # elsewhere than alone, in deterministic mode too, and torch's attention rounds by the cuts.
    prompts = PROMPTS if kernels else PROMPTS[:3]
    together = collect(engine, prompts)
    assert [collect(engine, [prompt])[0] for prompt in prompts] == together


@torch.inference_mode()
@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_drift_little(tiny: Path, scheme: Quantization) -> None:
    plain = Phi3VForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    expected = logits(TorchDecoder(plain))
    found = logits(TorchDecoder(quantized(tiny, scheme, torch.float32)))
    drift = float((found - expected).pow(2).mean().sqrt() / expected.std())
    assert 0 < drift < DRIFT[scheme]


@torch.inference_mode()
@pytest.mark.parametrize("scheme", SCHEMES)
def test_scales_stay_as_they_are_rounded(scheme: Quantization) -> None:
    layer = QuantizedLinear(torch.randn(8, 64) * 1e-8, scheme)
    before = {name: kept.clone() for name, kept in layer.named_buffers()}
    for dtype in (torch.float32, torch.float16):
        for name, kept in layer.to(dtype).named_buffers():
            assert kept.dtype is before[name].dtype
            assert torch.equal(kept, before[name])


@torch.inference_mode()
@pytest.mark.parametrize("scheme", SCHEMES)
def test_layers_are_given_kernels_one_by_one(
    tiny: Path, scheme: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No layer is held beside what was made of it: a model's weights would be there twice."""
    model = quantized(tiny, scheme, torch.bfloat16)
    alive = [weakref.ref(m) for m in model.modules() if isinstance(m, QuantizedLinear)]
    at_once: list[int] = []
    plain = model.set_submodule

    def set_submodule(name: str, layer: torch.nn.Module) -> None:
        at_once.append(sum(ref() is not None for ref in alive))
        plain(name, layer)

    monkeypatch.setattr(model, "set_submodule", set_submodule)
    use_torch_kernels(model)
    assert at_once == [*range(len(alive), 0, -1)]


@torch.inference_mode()
@pytest.mark.parametrize("fault", ["inputs", "refusal"])
def test_shapes_that_kernels_do_not_take_are_computed_without(
    tmp_path: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Sizes that are no whole steps are not tried; others are, as they are in the model."""
    write_checkpoint(tmp_path, PRESETS["tiny"], intermediate_size=136 if fault == "inputs" else 144)
    kernel, asked = torch._weight_int8pack_mm, []  # torch's only name for it

    def refuses(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
        asked.append(values.shape[1])
        if values.shape[1] == 144:
            raise RuntimeError("expected another K")
        return kernel(x, values, scales)

    monkeypatch.setattr(torch, "_weight_int8pack_mm", refuses)
    model = quantized(tmp_path, "int8", torch.bfloat16)
    expected = logits(TorchDecoder(model), 7)
    with caplog.at_level(logging.WARNING):
        use_torch_kernels(model)
    reason = {
        "inputs": "multiples of 16 inputs, and a layer has 136",
        "refusal": "expected another K",
    }
    assert f"which is slow: {'' if fault == 'inputs' else 'RuntimeError: '}" in caplog.text
    assert reason[fault] in caplog.text
    assert set(asked) == (set() if fault == "inputs" else {64, 144})
    assert torch.equal(logits(TorchDecoder(model), 7), expected)


def test_sizes_that_cannot_be_quantized_are_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, PRESETS["tiny"], intermediate_size=136)
    with pytest.raises(
        CheckpointError, match=r"--quantization int4 does not support this model: .* 136"
    ):
        load_engine(tmp_path, LoadOptions("", quantization="int4"))
    # No whole step of torch's kernels: the answer is what the same numbers give as plain weights.
    options = LoadOptions("", dtype="bfloat16", quantization="int8", max_model_len=64)
    found = logits(load_engine(tmp_path, options).network.decoder)
    expected = logits(TorchDecoder(quantized(tmp_path, "int8", torch.float32)))
    assert float((found - expected).pow(2).mean().sqrt() / expected.std()) < DRIFT["int8"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_live_server(tiny: Path, scheme: str) -> None:
    flags = ("--model", str(tiny), "--api-key", API_KEY, "--max-model-len", "2048")
    live = start_server(*flags, "--quantization", scheme)
    response = chat(live, max_tokens=5)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["finish_reason"] in ("stop", "length")
    assert live.stop() == 0
    check_log("".join(live.log))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_on_a_gpu(tiny: Path, scheme: Quantization, caplog: pytest.LogCaptureFixture) -> None:
    """Torch's kernels are found to work there, and answer as the layers do."""
    options = LoadOptions(
        "", dtype="bfloat16", device="cuda", max_model_len=2048, quantization=scheme
    )
    engine = load_engine(tiny, options)
    assert "dequantizing" not in caplog.text
    assert len(collect(engine, PROMPTS)[0]) == 12
