"""Engines as on a GPU, on the CPU: kernels in Triton's interpreter; see ``gpu_stand_ins``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.engine.config import EngineConfig
from model.engine.engine import Engine, MakeRunner
from model.engine.execution.runner import Runner, make_runner
from model.engine.kv_cache.base import PagedCache
from model.engine.kv_cache.gpu import GpuKVCache
from model.engine.policy import Policy
from model.engine.request import SamplingParams, TextDelta
from model.engine.scheduling.chunk import Chunk
from model.engine.scheduling.pacing import Pacing
from model.phi3v.decoder import Decoder
from model.phi3v.decoder_gpu import GpuDecoder
from model.phi3v.inputs.processing import Processor, PromptInputs
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.network import Network
from model.phi3v.rope import LongRope

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SIZES = EngineConfig(2048, max_num_seqs=6, prefill_chunk=100, num_blocks=600)
LENGTHS = [1, 17, 1018, 40, 1100, 300]  # the third crosses into the long regime


def make_engine(
    model: Phi3VForCausalLM, tiny: Path, make: MakeRunner = make_runner, **sizes: Any
) -> Engine:
    vision = model.model.vision_embed_tokens
    network = Network(model.config, GpuDecoder(model), vision, model.dtype)
    config = replace(SIZES, **sizes)
    # Which steps there are must not depend on the clock.
    pacing = Pacing(config.prefill_chunk, fixed=True)
    return Engine(network, Processor.from_checkpoint(tiny), frozenset(), config, make, pacing)


class Runners:
    """Makes an engine's runner, and a plain one that shares its cache."""

    cache: GpuKVCache
    fast: Runner
    plain: Runner

    def make(
        self,
        decoder: Decoder,
        cache: PagedCache,
        rope: LongRope,
        policy: Policy,
    ) -> Runner:
        assert isinstance(cache, GpuKVCache)
        self.cache = cache
        self.plain = Runner(decoder, cache, rope, policy.fixed_rows)
        self.fast = make_runner(decoder, cache, rope, policy)
        assert self.fast.graph_rows
        return self.fast


def text_prompt(length: int) -> PromptInputs:
    generator = torch.Generator().manual_seed(length)
    return PromptInputs(torch.randint(300, 32000, (length,), generator=generator).tolist())


def run(engine: Engine, lengths: list[int]) -> list[list[int]]:
    """Greedy answers, token by token; prompt i arrives at step i."""
    answers: list[list[int]] = [[] for _ in lengths]
    waiting = list(enumerate(lengths))
    while waiting or engine.has_work:
        if waiting:
            i, length = waiting.pop(0)
            engine.add(i, text_prompt(length), GREEDY)
        for output in engine.step():
            assert isinstance(output.result, TextDelta), output.result
            answers[output.key[0]] += output.result.token_ids
    return answers


def decode_step(engine: Engine, lengths: list[int]) -> list[Any]:
    """Prompts up to their first token, and the chunks that come next."""
    for i, length in enumerate(lengths):
        engine.add(i, text_prompt(length), replace(GREEDY, max_tokens=200))
    while not all(s.is_decoding for s in engine.scheduler.running) or engine.scheduler.waiting:
        engine.step()
    return engine.scheduler.schedule()


def logits_of(engine: Engine, lengths: list[int], key: int) -> Tensor:
    """Logits of each step of one of several answers."""
    rows: list[Tensor] = []
    compute = Runner.run

    def keep(self: Runner, chunks: list[Chunk]) -> Tensor:
        logits_SV = compute(self, chunks)
        keys = [chunk.sequence.key[0] for chunk in chunks if chunk.num_sampled]
        rows.extend(logits_SV[[i for i, found in enumerate(keys) if found == key]])
        return logits_SV

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "run", keep)
        run(engine, lengths)
    return torch.stack(rows)
