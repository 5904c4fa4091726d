"""The memory plan: what it counts, what it refuses, and that its advice is good."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.demo.random_checkpoint import PRESETS, config_for, write_checkpoint
from model.engine.config import GIB, DType, LoadOptions
from model.engine.kv_cache.base import KVCache
from model.engine.loading.load import load_engine
from model.engine.loading.machine import Machine, cgroup_left, probe
from model.engine.loading.memory_plan import MemoryPlan, plan_memory
from model.engine.loading.remedies import SHORTEST
from model.errors import CheckpointError
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.modeling import official_shapes
from model.phi3v.weights.files import Header, read_headers
from tests.support.engines.official_sizes import FULL, HEADERS
from tests.support.servers.command_line import one_sentence, run
from tests.support.servers.live_server import API_KEY, START_TIMEOUT, start_server

OPTIONS = LoadOptions("", dtype="bfloat16")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def plan(options: LoadOptions, gib: float, device: torch.device = CPU) -> MemoryPlan:
    return plan_memory(HEADERS, FULL, options, [Machine(device, int(gib * GIB), "of a test")])


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_the_official_model(device: torch.device) -> None:
    found = plan(OPTIONS, 24, device)
    tower = replace(OPTIONS, embedding_cache_memory=0)
    vision = plan(tower, 24, device).vision
    if device == CUDA:  # without the embeddings of images in the KV cache
        vision -= plan(tower, 24, device).tokens * 2 * FULL.hidden_size
    assert 8293242880 < found.weights + vision < 8293242880 * 1.15
    assert found.weights == 2 * sum(
        torch.Size(header.shape).numel() for name, header in HEADERS.items() if "vision" not in name
    )
    assert found.kv_cache == found.num_blocks * found.block_size * 384 * 1024
    assert found.total <= found.available == 24 * GIB
    if device == CUDA:  # all that is left, but for a part of a block and its embeddings
        assert found.total > found.available - 1.02 * found.kv_cache // found.num_blocks
    else:
        assert found.kv_cache <= found.available / 4
    assert f"KV cache of {found.num_blocks * found.block_size} tokens" in str(found)


def test_it_is_what_is_allocated() -> None:
    """Of keys and values on a CPU; ``test_memory_parts`` has those on a GPU."""
    config = Phi3VConfig(**config_for(PRESETS["tiny"], "tiny"))
    headers = {name: Header("x", shape, "BF16") for name, shape in official_shapes(config).items()}
    dtypes: list[tuple[DType, torch.dtype]] = [
        ("float16", torch.float32),
        ("bfloat16", torch.bfloat16),
    ]
    for dtype, stored in dtypes:
        options = replace(OPTIONS, dtype=dtype, max_num_seqs=1)
        found = plan_memory(headers, config, options, [Machine(CPU, 4 * GIB, "")])
        assert found.num_blocks * found.block_size == config.context_window
        cache = KVCache(config, found.num_blocks, found.block_size, stored, CPU)
        assert cache.keys.nbytes + cache.values.nbytes == found.kv_cache


def test_a_window_that_is_asked_for_gets_its_room() -> None:
    short = plan(OPTIONS, 16)
    longer = short.max_model_len * 3 // 2
    assert plan(replace(OPTIONS, max_model_len=longer), 16).max_model_len == longer
    with pytest.raises(CheckpointError, match="exceeds the checkpoint's context window of 131072"):
        plan(replace(OPTIONS, max_model_len=200_000), 24)


REFUSED = {
    "window": (replace(OPTIONS, max_model_len=100_000), 24),
    "KV cache": (replace(OPTIONS, kv_cache_memory=40), 24),
    "window beyond the KV cache": (replace(OPTIONS, kv_cache_memory=1, max_model_len=4096), 24),
    "float32": (replace(OPTIONS, dtype="float32"), 12),
    "embeddings": (replace(OPTIONS, embedding_cache_memory=4), 11),
    "half of the weights": (OPTIONS, 7.5),
    "a window and all of the weights": (replace(OPTIONS, max_model_len=100_000), 7),
    "a step's tokens": (replace(OPTIONS, prefill_chunk=100_000), 16),
    "a step's sequences": (replace(OPTIONS, max_num_seqs=20_000), 16),
    "both": (replace(OPTIONS, prefill_chunk=100_000, max_num_seqs=20_000), 12),
    "no flag alone": (replace(OPTIONS, dtype="float32", embedding_cache_memory=8), 6.3),
}


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("why", REFUSED)
def test_what_does_not_fit_is_refused_with_advice_that_works(
    why: str, device: torch.device
) -> None:
    options, gib = REFUSED[why]
    with pytest.raises(CheckpointError) as caught:
        plan(options, gib, device)
    sentence = str(caught.value)
    assert "GiB" in sentence
    assert "\n" not in sentence
    advice = re.search("would fit with (.*)", sentence)
    assert advice is not None, sentence
    for remedy in advice[1].split(" or "):
        words = iter(remedy.split())
        changes = {flag[2:].replace("-", "_"): next(words) for flag in words}
        numbers: dict[str, Any] = {
            name: value if name in ("dtype", "quantization") else float(value)
            for name, value in changes.items()
        }
        for name in {"max_model_len", "prefill_chunk", "max_num_seqs"} & numbers.keys():
            numbers[name] = int(changes[name])
        assert numbers.get("max_model_len", SHORTEST) >= SHORTEST
        plan(replace(options, **numbers), gib, device)


def test_windows_of_no_use_are_not_advised() -> None:
    """Unless such a one was asked for."""
    for asked, advised in ((2048, False), (400, True)):
        with pytest.raises(CheckpointError) as caught:
            plan(replace(OPTIONS, kv_cache_memory=0.1, max_model_len=asked), 24)
        assert ("--max-model-len" in str(caught.value)) == advised
        assert "--kv-cache-memory" in str(caught.value).partition("would fit with")[2]


def test_a_longer_window_leaves_less_on_a_gpu() -> None:
    """Its blocks and keys are in tables, and gathered; a CPU reads keys where they are."""
    for device in (CPU, CUDA):
        some, many = (
            plan(replace(OPTIONS, max_model_len=length), 80, device).tokens
            for length in (20_000, 50_000)
        )
        assert (some > many) == (device == CUDA)


def test_the_longest_window_is_found() -> None:
    """One block more does not fit."""
    found = plan(OPTIONS, 24, CUDA)
    longer = found.max_model_len + found.block_size
    sizes: dict[str, Any] = {
        "max_num_seqs": found.max_num_seqs,
        "prefill_chunk": found.prefill_chunk,
    }
    plan(replace(OPTIONS, max_model_len=found.max_model_len, **sizes), 24, CUDA)
    with pytest.raises(CheckpointError, match=f"with --max-model-len {found.max_model_len} "):
        plan(replace(OPTIONS, max_model_len=longer, **sizes), 24, CUDA)


def test_images_that_may_wait_leave_less_for_keys_and_values() -> None:
    """On CPUs, whose memory they share; what is asked for is not refused for their sake."""
    for device in (CPU, CUDA):
        some, many = (
            plan(replace(OPTIONS, max_waiting_memory=gib), 14, device).kv_cache
            for gib in (0.5, 2.5)
        )
        assert (some > many) == (device == CPU)
    asked = replace(OPTIONS, max_waiting_memory=100)
    assert plan(replace(asked, max_model_len=4096), 14).num_blocks * 16 == 4096
    assert plan(replace(asked, kv_cache_memory=2), 14).kv_cache > 1.9 * GIB


def test_a_layer_of_one_dimension_is_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, PRESETS["tiny"])
    file, name = tmp_path / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(file)
    tensors[name] = tensors[name].flatten()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{name} has the shape"):
        load_engine(tmp_path, replace(OPTIONS, quantization="int8", max_model_len=64))


def test_what_cannot_fit_at_all() -> None:
    with pytest.raises(CheckpointError, match="no flag would make it fit"):
        plan(OPTIONS, 1)


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_control_groups(tmp_path: Path, version: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    lines = {1: "5:cpu,cpuacct:/a\n4:memory:/a/b\n0::/\n", 2: "0::/a/b\n"}[version]
    (tmp_path / "proc/self/cgroup").write_text(lines)
    base = tmp_path / "sys/fs/cgroup" / ("memory" if version == 1 else "")
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        2: ("memory.max", "memory.current", ""),
    }[version]
    unlimited = {1: str(1 << 62), 2: "max"}[version]

    def group(path: str, limit: str, usage: int, cached: int) -> None:
        folder = base / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(limit + "\n")
        (folder / names[1]).write_text(f"{usage}\n")
        active = cached // 4  # read more than once, and dropped all the same
        (folder / "memory.stat").write_text(
            f"anon 7\n{names[2]}inactive_file {cached - active}\n{names[2]}active_file {active}\n"
        )

    assert cgroup_left(tmp_path) is None
    group("a/b", unlimited, 500, 100)
    assert cgroup_left(tmp_path) in (None, (1 << 62) - 400)
    group("a", "5000", 700, 100)  # of the group around it
    assert cgroup_left(tmp_path) == 5000 - 600
    group("", "800", 700, 0)  # of the container
    assert cgroup_left(tmp_path) == 100
    group("", "800", 900, 0)
    assert cgroup_left(tmp_path) == 0
    assert cgroup_left(tmp_path / "nowhere") is None


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = probe(CPU, 0.5)
    assert 0 < here.available <= psutil.virtual_memory().total
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 24 * GIB))
    gpu = probe(CUDA, 0.5)
    assert gpu.available == 5 * GIB
    assert gpu.memory == gpu.total == 24 * GIB
    assert here.memory == here.available
    assert gpu.text == "0.5 of 10.00 GiB free GPU memory, 24.00 GiB in total"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_holds_what_was_planned(tiny: Path) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    options = LoadOptions("", dtype="bfloat16", device="cuda", max_model_len=2048)
    found = plan_memory(
        read_headers(tiny), Phi3VConfig.from_pretrained(tiny), options, [probe(CUDA, 0.9)]
    )
    engine = load_engine(tiny, options)
    assert engine.config.num_blocks == found.num_blocks
    assert torch.cuda.max_memory_allocated() - before <= found.total


def test_a_live_server_says_its_plan_or_refuses(tiny: Path) -> None:
    live = start_server("--model", str(tiny), "--api-key", API_KEY, "--max-model-len", "512")
    assert httpx2.get(f"{live.url}/health").status_code == 200
    assert live.stop() == 0
    [line] = [line for line in live.log if "memory: weights" in line]
    assert re.search(r"weights [\d.e-]+ \+ vision .* \+ headroom .* = .* of .* GiB", line)
    assert "longest sequence: 512 of the model's 8192 tokens" in line
    assert "steps of at most 16 sequences and 512 prompt tokens" in line
    for flags, remedy in (
        (["--max-model-len", "4000", "--kv-cache-memory", "0.0001"], "--kv-cache-memory 0.01"),
        (["--embedding-cache-memory", "100000"], "--embedding-cache-memory 0"),
    ):
        done = run("--model", str(tiny), *flags, timeout=START_TIMEOUT)
        assert done.returncode == 1
        assert "it would fit with" in (sentence := one_sentence(done))
        assert remedy in sentence
        assert "Loading weights" not in done.stderr
