"""What a GPU allocates is what is planned: the real cache and scratch memory, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from model.demo.random_checkpoint import PRESETS, config_for
from model.engine.config import GIB, LoadOptions
from model.engine.loading import memory_parts as parts
from model.engine.loading.machine import Machine
from model.engine.loading.memory_plan import plan_memory
from model.engine.loading.step_size import StepSize
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.modeling import official_shapes
from model.phi3v.weights.files import Header
from tests.support.engines.official_sizes import FULL
from tests.support.servers.live_server import ROOT

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# In a process of its own: the kernels' compiler decides at import whether it interprets.
ALLOCATE = """
import json, sys, torch
from model.demo.random_checkpoint import PRESETS, config_for
from model.engine.kv_cache.gpu import GpuKVCache
from model.engine.kv_cache.prefill import sdpa
from model.phi3v.configuration import Phi3VConfig
config = Phi3VConfig(**config_for(PRESETS["tiny"], "tiny"))
found = []
for blocks, rows, max_blocks in json.loads(sys.argv[1]):
    sizes = (config, blocks, torch.bfloat16, torch.device("cpu"), rows, max_blocks, sdpa)
    cache = GpuKVCache(*sizes)
    scratch = sum(tensor.nbytes for tensor in vars(cache.scratch).values())
    found.append([cache.blocks.nbytes, scratch, cache.tables.table_NW.nbytes])
print(json.dumps(found))
"""


def test_a_gpus_cache_is_as_large_as_planned() -> None:
    pytest.importorskip("triton")
    config = Phi3VConfig(**config_for(PRESETS["tiny"], "tiny"))
    headers = {name: Header("x", shape, "BF16") for name, shape in official_shapes(config).items()}
    default = LoadOptions("", dtype="bfloat16")
    plans = [
        plan_memory(headers, config, options, [Machine(CUDA, 4 * GIB, "")])
        for options in (
            replace(default, max_model_len=4096),
            replace(default, max_num_seqs=300),
            replace(default, max_model_len=70),
        )
    ]
    sizes = [
        [found.num_blocks, found.max_num_seqs, -(-found.max_model_len // found.block_size)]
        for found in plans
    ]
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE, json.dumps(sizes)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    heads = config.num_attention_heads
    for found, (cache, scratch, table) in zip(plans, json.loads(done.stdout), strict=True):
        assert cache == found.kv_cache
        window, rows = found.max_model_len, found.max_num_seqs
        head_dim = config.hidden_size // heads
        assert scratch == parts.split_scratch_bytes(rows, heads, head_dim, window)
        assert parts.window_bytes(config, rows, window, torch.bfloat16, CUDA) >= scratch + 2 * table


def test_what_grows_with_rows_counts_on_a_gpu() -> None:
    """Logits above all: of 256 rows, and of 256 guessed tokens besides, in several copies."""
    few, many = (
        parts.step_bytes(FULL, StepSize(rows, 2048), torch.bfloat16, CUDA) for rows in (16, 256)
    )
    copies = 2 + 3 * 4  # as the head gives them, float32, processed, log probabilities
    assert many - few > 240 * FULL.vocab_size * copies
    assert few > (16 + 256) * FULL.vocab_size * copies


@pytest.mark.parametrize("part", ["step", "tower", "window", "embedding"])
def test_activations_have_the_weights_dtype_on_a_gpu(part: str) -> None:
    def size(dtype: torch.dtype, device: torch.device) -> int:
        return {
            "step": lambda: parts.step_bytes(FULL, StepSize(16, 8192), dtype, device),
            "tower": lambda: parts.tower_bytes(FULL, dtype, device),
            "window": lambda: parts.window_bytes(FULL, 16, 100_000, dtype, device),
            "embedding": lambda: parts.embedding_bytes(FULL, dtype, device),
        }[part]()

    assert size(torch.float32, CUDA) > 1.4 * size(torch.bfloat16, CUDA)
    assert size(torch.float32, CPU) == size(torch.bfloat16, CPU)
