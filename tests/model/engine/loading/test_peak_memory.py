"""Loading takes little more memory than what is loaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.demo.random_checkpoint import PRESETS, write_checkpoint
from model.engine.config import LoadOptions, Quantization
from model.engine.loading.machine import Machine
from model.engine.loading.memory_plan import plan_memory
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.weights.files import read_headers

MEASURE = """
import sys, threading, time
from dataclasses import replace
from pathlib import Path
from typing import Any
import psutil
from model.engine.config import LoadOptions
from model.engine.loading.load import load_engine

try:  # the compiler and its kernels are code, 100 to 200 MB of it, whatever the checkpoint
    from model.cpu.attention import paged_attention
    from model.cpu.decoder import DecoderKernels
    from model.cpu.linear.linear import linear_kernel
    from model.cpu.self_attention import attention_kernel
except ImportError:
    pass
else:
    import numpy as np
    stored = {"none": None, "int8": np.uint16, "int4": np.uint64}[sys.argv[2]]
    paged_attention(True), DecoderKernels(True, stored), linear_kernel(True), attention_kernel(True)

process = psutil.Process()
before = peak = process.memory_info().rss
done = False

def watch():
    global peak
    while not done:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
load_engine(Path(sys.argv[1]), LoadOptions("", dtype="bfloat16", max_model_len=64, quantization=sys.argv[2]))
done = True
watcher.join()
print(peak - before)
"""


@pytest.mark.parametrize(
    ("max_shard_bytes", "quantization"),
    [
        pytest.param(5_000_000_000, "none", marks=pytest.mark.slow),
        (200_000_000, "none"),
        pytest.param(5_000_000_000, "int8", marks=pytest.mark.slow),
        (200_000_000, "int4"),
    ],
)
def test_loading_takes_little_more_memory_than_the_weights(
    tmp_path: Path, max_shard_bytes: int, quantization: Quantization
) -> None:
    write_checkpoint(
        tmp_path,
        PRESETS["bench"],
        num_layers=16,
        hidden_size=1152,
        num_heads=12,
        intermediate_size=3072,
        max_shard_bytes=max_shard_bytes,
    )
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size >= 500_000_000
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_bytes < size)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), quantization],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[4],
    )
    growth = int(done.stdout)
    options = LoadOptions("", dtype="bfloat16", embedding_cache_memory=0, quantization=quantization)
    config = Phi3VConfig.from_pretrained(tmp_path)
    plan = plan_memory(
        read_headers(tmp_path), config, options, [Machine(torch.device("cpu"), 8 << 30, "")]
    )
    shutil.rmtree(tmp_path)
    if quantization == "none":
        assert 0.5 * size < growth <= 1.15 * size, f"{growth / size:.2f} times the weights"
    else:  # layers are quantized one by one, in float32
        assert growth <= plan.weights + plan.vision + plan.headroom / 2
        assert growth < {"int8": 0.95, "int4": 0.75}[quantization] * size
