"""A model spread over several GPUs: how layers are shared out, and that answers stay the same.

Devices are the CPU here, several times. That nothing is computed from tensors of two of them is
checked by torch's own fake tensors, which have devices that are not there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # torch has no public name for it

from model.engine.config import GIB, EngineConfig, LoadOptions, Quantization
from model.engine.engine import Engine
from model.engine.kv_cache.base import KVCache, Span
from model.engine.kv_cache.choice import make_kv_cache
from model.engine.kv_cache.pipeline import PipelineKVCache
from model.engine.loading.load import load_engine
from model.engine.loading.machine import Machine
from model.engine.loading.memory_plan import MemoryPlan, plan_memory
from model.engine.loading.placement import device_map, spread
from model.engine.request import SamplingParams, TextDelta
from model.errors import CheckpointError
from model.gpu.launch import intercepted
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.decoder import Decoder, TorchDecoder
from model.phi3v.decoder_gpu import GpuDecoder
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.processing import Processor, PromptInputs
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.network import Network
from tests.support.engines.official_sizes import FULL, HEADERS
from tests.support.engines.oracle import greedy

CPU = torch.device("cpu")
LAYERS = 5
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SIZES = EngineConfig(2048, max_num_seqs=6, prefill_chunk=100, num_blocks=600)
LENGTHS = (1, 17, 1018, 1100)  # the third crosses into the long regime


@pytest.mark.parametrize("rooms", [(9, 9), (10, 5), (30, 1), (7, 5, 3), (4,), (-3, 8)])
def test_layers_are_shared_out_best(rooms: tuple[int, ...]) -> None:
    def least(counts: tuple[int, ...]) -> float:
        return min(room / count for room, count in zip(rooms, counts, strict=True) if count)

    every = product(range(LAYERS + 1), repeat=len(rooms))
    best = max(least(counts) for counts in every if sum(counts) == LAYERS)
    found = spread(LAYERS, rooms)
    assert sum(found) == LAYERS
    assert least(tuple(found)) == best


@pytest.fixture(scope="module")
def model(tiny: Path) -> Phi3VForCausalLM:
    config = Phi3VConfig.from_pretrained(tiny)
    config.num_hidden_layers = LAYERS
    torch.manual_seed(0)
    return Phi3VForCausalLM(config).eval()


def stages(config: Phi3VConfig, counts: tuple[int, ...], sizes: EngineConfig) -> PipelineKVCache:
    """Caches for so many layers each."""
    made = []
    for count in counts:
        part = copy.copy(config)
        part.num_hidden_layers = count
        made.append(KVCache(part, sizes.num_blocks, sizes.block_size, torch.float32, CPU))
    return PipelineKVCache(made)


def prompt(length: int) -> PromptInputs:
    generator = torch.Generator().manual_seed(length)
    return PromptInputs(torch.randint(300, 32000, (length,), generator=generator).tolist())


def answers(engine: Engine) -> list[list[int]]:
    """To texts of several lengths and a picture, all at once; the last to be answered twice."""
    image = MessageImage(lambda: Image.linear_gradient("L"))
    prompts = [*map(prompt, LENGTHS), engine.processor([Message("user", "look", (image,))], 2000)]
    for number, inputs in enumerate(prompts):
        engine.add(number, inputs, replace(GREEDY, n=1 + (number == len(LENGTHS))))
    found: dict[tuple[int, int], list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output.result, TextDelta), output.result
            found.setdefault(output.key, []).extend(output.result.token_ids)
    return [found[key] for key in sorted(found)]


def make_engine(model: Phi3VForCausalLM, tiny: Path) -> Engine:
    vision = model.model.vision_embed_tokens
    network = Network(model.config, TorchDecoder(model), vision, model.dtype)
    return Engine(network, Processor.from_checkpoint(tiny), frozenset(), SIZES)


def test_answers_are_those_of_generate(
    model: Phi3VForCausalLM, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = []
    for length in LENGTHS:
        ids = torch.tensor([prompt(length).token_ids])
        expected.append(greedy(model, ids, 12))
    whole = answers(make_engine(model, tiny))
    assert whole[: len(LENGTHS)] == expected
    for counts in ((2, 3), (4, 1), (1, 2, 2)):
        cache = stages(model.config, counts, SIZES)
        monkeypatch.setattr("model.engine.engine.make_kv_cache", lambda *_, made=cache: made)
        engine = make_engine(model, tiny)
        assert answers(engine) == whole
        assert engine.describe().kv_cache == "PipelineKVCache"
        assert engine.scheduler.num_crossings == 1


def placed(model: Phi3VForCausalLM, counts: list[int]) -> Phi3VForCausalLM:
    """A copy of the model, on fake devices; within a ``FakeTensorMode`` alone."""
    made = Phi3VForCausalLM(model.config)
    devices = [torch.device("cpu", index) for index in range(len(counts))]
    for name, device in device_map(devices, counts).items():
        for module in made.get_submodule(name).modules():
            for key, parameter in list(module.named_parameters(recurse=False)):
                new = torch.empty(parameter.shape, device=device)
                setattr(module, key, nn.Parameter(new, requires_grad=False))
    assert {x.device.index for x in made.parameters()} <= set(range(len(counts)))
    return made


@pytest.mark.parametrize("make", [TorchDecoder, GpuDecoder])
def test_nothing_is_computed_from_tensors_of_two_devices(
    make: Callable[[Phi3VForCausalLM], Decoder],
    model: Phi3VForCausalLM,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kernels: list[str] = []
    with (
        FakeTensorMode(),
        torch.inference_mode(),
        intercepted(lambda launch: kernels.append(launch.kernel)),
    ):
        decoder = make(placed(model, [2, 2, 1]))
        assert [device.index for device in decoder.layer_devices] == [0, 0, 1, 1, 2]
        assert decoder.device.index == 0
        config = copy.copy(model.config)
        fused = decoder.fuses_attention
        # The CPU's kernels read no blocks of 32.
        sizes = SIZES if fused else replace(SIZES, block_size=32, num_blocks=64)
        devices = decoder.layer_devices
        cache = make_kv_cache(config, sizes, torch.float32, devices, fused)
        assert isinstance(cache, PipelineKVCache)
        assert [stage.num_layers for stage in cache.stages] == [2, 2, 1]
        hidden_TE = decoder.embed(torch.zeros(7, dtype=torch.int64, device="cpu:0"))
        cos_TD, sin_TD = torch.empty(2, 7, config.hidden_size // 4, device="cpu:0")
        attend = Watched(cache.attention([Span([0], 0, 4), Span([1], 5, 8)]))
        hidden_TE = decoder(hidden_TE, cos_TD, sin_TD, attend)
        assert decoder.logits(hidden_TE).device.index == 0
        assert attend.seen == [0, 0, 1, 1, 2]
        cache.copy_block(0, 1)
    assert ("paged_decode_kernel" in kernels) == fused
    assert "decoding on 3 GPUs without CUDA graphs" in caplog.text


class Watched:
    """An attention that tells on which devices its results are."""

    def __init__(self, attend: Any) -> None:
        self.seen: list[int] = []
        self._attend = attend

    def __call__(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        return self._see(self._attend(layer, q_THD, k_TGD, v_TGD))

    def fused(
        self, layer: int, qkv_TK: Tensor, cos_TD: Tensor, sin_TD: Tensor, heads: int
    ) -> Tensor:
        return self._see(self._attend.fused(layer, qkv_TK, cos_TD, sin_TD, heads))

    def _see(self, output: Tensor) -> Tensor:
        self.seen.append(output.device.index)
        return output


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_weights_are_loaded_by_the_map(
    quantization: Quantization,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The map of two devices, both of which are the CPU."""
    options = LoadOptions("", dtype="float32", max_model_len=2048, quantization=quantization)
    expected = answers(load_engine(tiny, options))
    caplog.set_level("INFO")
    monkeypatch.setattr("model.engine.loading.load.devices_for", lambda options: [CPU, CPU])
    assert answers(load_engine(tiny, options)) == expected


def plan(gib: tuple[float, ...], **options: Any) -> MemoryPlan:
    machines = [Machine(torch.device("cuda", i), int(x * GIB), "") for i, x in enumerate(gib)]
    return plan_memory(HEADERS, FULL, LoadOptions("", dtype="bfloat16", **options), machines)


def test_two_cards_hold_what_one_cannot() -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        plan((8,))
    sizes = {"max_num_seqs": 16, "prefill_chunk": 512, "max_model_len": 2048}
    found, one = plan((8, 8), **sizes), plan((24,), **sizes)
    assert sum(found.layers) == 32
    assert found.layers[0] < found.layers[1]  # the first has the tower and the head as well
    assert found.weights == one.weights
    assert found.headroom == 2 * one.headroom
    # Each card's share, counted anew.
    layer = sum(
        2 * torch.Size(header.shape).numel()
        for name, header in HEADERS.items()
        if name.startswith("model.layers.0.")
    )
    first = found.vision + found.weights - 32 * layer  # with the images' embeddings
    block = found.kv_cache // found.num_blocks // 32
    embeddings = found.block_size * 2 * FULL.hidden_size
    lefts = [
        8 * GIB - one.headroom - others - count * (layer + block * found.num_blocks)
        for count, others in zip(found.layers, (first, 0), strict=True)
    ]
    assert min(lefts) >= 0
    needed = [found.layers[0] * block + embeddings, found.layers[1] * block]
    assert any(left < more for left, more in zip(lefts, needed, strict=True))


def test_a_card_with_no_room_gets_no_layers() -> None:
    assert plan((4, 12)).layers in {(0, 32), (1, 31)}
    small = plan((12, 0.5))
    assert small.layers == (32, 0)
    assert small.headroom == plan((12,)).headroom


def test_the_first_card_has_room_for_what_is_no_layer() -> None:
    for first in (0.1, 1, 3):
        with pytest.raises(CheckpointError, match="does not fit"):
            plan((first, 24))


def test_more_cards_than_there_are(tiny: Path) -> None:
    options = LoadOptions("", device="cpu", pipeline_parallel_size=2)
    with pytest.raises(CheckpointError, match="-size 2 needs 2 GPUs, but 0 can be used here"):
        load_engine(tiny, options)


def test_advice_to_take_more_cards(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 0
    monkeypatch.setattr("model.engine.loading.load.usable_gpus", lambda: 3)
    monkeypatch.setattr("model.engine.loading.load.failure", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 24 * GIB))
    monkeypatch.setattr("model.engine.loading.load.read_headers", lambda directory: HEADERS)
    monkeypatch.setattr("model.engine.loading.load.Phi3VConfig", lambda **raw: FULL)
    for gib, advice in ((8, "2"), (7, "3"), (2, None)):
        free = gib * GIB
        with pytest.raises(CheckpointError, match="does not fit") as refused:
            load_engine(tiny, LoadOptions("", dtype="bfloat16", max_model_len=2048))
        _, _, found = str(refused.value).partition("; it would fit on ")
        assert found == ((advice and f"{advice} GPUs with --pipeline-parallel-size {advice}") or "")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_on_two_gpus(quantization: Quantization, tiny: Path) -> None:
    options = LoadOptions("", dtype="float32", max_model_len=2048, quantization=quantization)
    one = load_engine(tiny, replace(options, device="cuda"))
    two = load_engine(tiny, replace(options, device="cuda", pipeline_parallel_size=2))
    assert len(set(two.network.decoder.layer_devices)) == 2
    assert answers(two) == answers(one)
