"""Prints the forms of kernels that serving would compile although warming up has not.

For a process without Triton's interpreter. Nothing is compiled and no kernel runs: Triton is only asked
which form each launch needs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from model.demo.random_checkpoint import PRESETS, config_for
from model.engine.config import EngineConfig
from model.engine.execution.cuda_graphs import DecodeGraphs, Size
from model.engine.kv_cache.base import Span
from model.engine.kv_cache.gpu import GpuKVCache
from model.engine.kv_cache.prefill import sdpa
from model.engine.loading.warm_up import compile_kernels
from model.engine.policy import Policy
from model.engine.request import SamplingParams
from model.engine.sampling.drawing import Row, draw_on_gpu
from model.gpu.launch import intercepted
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.decoder_gpu import GpuDecoder
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.network import Network
from model.phi3v.rope import LongRope

CPU = torch.device("cpu")
SIZES = EngineConfig(64, max_num_seqs=20, num_blocks=100)


class _Hopper:
    """A driver of an H100 that is not here."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def main() -> None:
    """Warm up, then serve."""
    driver.set_active(_Hopper())
    needed: set[str] = set()

    def need(*, fn: Any, key: Any, **_: Any) -> bool:
        needed.add(f"{fn.name} {key}")
        return True  # do not compile

    knobs.runtime.jit_cache_hook = need
    config = Phi3VConfig(**config_for(PRESETS["tiny"], "tiny"))
    model = Phi3VForCausalLM(config).bfloat16().eval()
    decoder = GpuDecoder(model)
    network = Network(config, decoder, model.model.vision_embed_tokens, model.dtype)
    with torch.inference_mode(), intercepted(lambda launch: launch.compile()):
        compile_kernels(network, SIZES)
        warmed = set(needed)
        serve(decoder, config)
    lines = [f"{len(warmed)} forms are compiled before the first request"]
    lines += [f"while serving: {form}" for form in sorted(needed - warmed)]
    sys.stdout.write("\n".join(lines) + "\n")


def serve(decoder: GpuDecoder, config: Phi3VConfig) -> None:
    """Steps of all kinds: graphs of all sizes; prompts beside up to eight streams; draws."""
    rows, blocks = SIZES.max_num_seqs, SIZES.max_model_len // SIZES.block_size
    cache = GpuKVCache(config, SIZES.num_blocks, decoder.dtype, CPU, rows, blocks, sdpa)
    rope = LongRope(config)

    def capture(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        compute()
        return compute

    DecodeGraphs(decoder, cache, rope, [Size(*s) for s in Policy.of(SIZES).graph_sizes], capture)
    for streams in range(9):
        spans = [Span([number], 4, 5) for number in range(streams)]
        for prompt in (Span([20, 21], 0, 32), Span([22], 3, 9), Span([23, 24], 5, 32)):
            tokens = streams + len(prompt)
            zero_T = torch.zeros(tokens, dtype=torch.int64)
            cos_TD, sin_TD = rope.cos_sin(zero_T, zero_T, decoder.dtype)
            decoder(decoder.embed(zero_T), cos_TD, sin_TD, cache.attention([*spans, prompt]))
    for count in range(1, 9):
        for min_p in (0.0, 0.1):
            params = SamplingParams(min_p=min_p)
            draw_on_gpu(torch.zeros(count, decoder.vocabulary), [Row(params, 1, 0)] * count)


if __name__ == "__main__":
    main()
