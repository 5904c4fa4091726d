"""A few steps of a tiny model: prompts, single tokens, sampling. For ``parts.sanitizer``.

Kernels are launched one by one, because CUDA graphs need torch's cache of memory, which hides errors.
"""

from __future__ import annotations

import sys

import torch

from model.demo.random_checkpoint import PRESETS
from model.engine.config import EngineConfig
from model.engine.execution.runner import Runner
from model.engine.kv_cache.base import PagedCache
from model.engine.policy import Policy
from model.engine.request import SamplingParams
from model.phi3v.decoder import Decoder
from model.phi3v.rope import LongRope
from scripts.benchmarks.harness.driver import answer, random_prompts
from scripts.gpu_checking.device import fast_dtype
from scripts.gpu_checking.engines import fused_network, make_engine, processor_for, random_model

SIZES = EngineConfig(512, max_num_seqs=2, num_blocks=64, prefill_chunk=64)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=4, ignore_eos=True)


def make_plain(decoder: Decoder, cache: PagedCache, rope: LongRope, policy: Policy) -> Runner:
    """A runner without CUDA graphs."""
    return Runner(decoder, cache, rope, policy.fixed_rows)


def main() -> None:
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    preset = PRESETS["tiny"]
    network = fused_network(random_model(preset, device, fast_dtype(device)))
    engine = make_engine(network, processor_for(preset), SIZES, make_plain)
    # The second prompt has several chunks and several splits.
    prompts = [random_prompts(1, length, length)[0] for length in (20, 300)]
    answers = answer(engine, prompts, SAMPLED)
    print([each.token_ids for each in answers])


if __name__ == "__main__":
    main()
