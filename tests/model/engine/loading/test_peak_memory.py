"""Loading takes little more memory than what is loaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.demo.random_checkpoint import PRESETS, write_checkpoint, write_json
from model.engine.config import LoadOptions, Quantization
from model.engine.loading.machine import Machine
from model.engine.loading.memory_plan import plan_memory
from model.phi3v.adapters.adapter import Adapter
from model.phi3v.adapters.model_files import model_shapes
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.weights.files import read_headers
from model.phi3v.weights.quantization import LAYERS

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
lora = Path(sys.argv[3]) if len(sys.argv) > 3 else None
load_engine(Path(sys.argv[1]), LoadOptions("", dtype="bfloat16", max_model_len=64, quantization=sys.argv[2]), lora)
done = True
watcher.join()
print(peak - before)
"""


def _write_adapter(checkpoint: Path, directory: Path) -> Path:
    """An adapter of all large matrices of the decoder."""
    directory.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for name, header in read_headers(checkpoint).items():
        if LAYERS.search(name.removesuffix(".weight")):
            rows, columns = header.shape
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = torch.randn(16, columns) / 100
            tensors[f"{layer}.lora_B.weight"] = torch.randn(rows, 16) / 100
    save_file(tensors, directory / "adapter_model.safetensors")
    targets = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "target_modules": targets}
    write_json(directory / "adapter_config.json", config)
    return directory


@pytest.mark.parametrize(
    ("max_shard_bytes", "quantization", "with_adapter"),
    [
        pytest.param(5_000_000_000, "none", False, marks=pytest.mark.slow),
        (200_000_000, "none", False),
        pytest.param(200_000_000, "none", True, marks=pytest.mark.slow),
        pytest.param(5_000_000_000, "int8", False, marks=pytest.mark.slow),
        (200_000_000, "int4", False),
        pytest.param(5_000_000_000, "int4", True, marks=pytest.mark.slow),
    ],
)
def test_loading_takes_little_more_memory_than_the_weights(
    tmp_path: Path, max_shard_bytes: int, quantization: Quantization, with_adapter: bool
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
    adapter = [str(_write_adapter(tmp_path, tmp_path / "adapter"))] if with_adapter else []
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), quantization, *adapter],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[4],
    )
    growth = int(done.stdout)
    options = LoadOptions("", dtype="bfloat16", embedding_cache_memory=0, quantization=quantization)
    config = Phi3VConfig.from_pretrained(tmp_path)
    merging = 0
    if with_adapter:  # what one merge takes, and the adapter's own memory-mapped file
        folder = tmp_path / "adapter"
        merging = Adapter(folder, model_shapes(config), "x").work_bytes()
        merging += (folder / "adapter_model.safetensors").stat().st_size
    plan = plan_memory(
        read_headers(tmp_path), config, options, [Machine(torch.device("cpu"), 8 << 30, "")]
    )
    shutil.rmtree(tmp_path)
    if quantization == "none":
        assert 0.5 * size < growth <= 1.15 * size + merging, (
            f"{growth / size:.2f} times the weights"
        )
    else:  # layers are quantized one by one, in float32
        assert growth <= plan.weights + plan.vision + plan.headroom / 2
        assert growth < {"int8": 0.95, "int4": 0.75}[quantization] * size
