"""Engines on random weights that are made on the device, without a checkpoint on the disk."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.demo.random_checkpoint import (
    LOGIT_SPREAD,
    Preset,
    config_for,
    preprocessor_config,
    write_json,
)
from model.demo.tokenizer_files import write_tokenizer
from model.engine.config import GIB, EngineConfig
from model.engine.engine import Engine, MakeRunner
from model.engine.execution.runner import Runner, make_runner
from model.engine.kv_cache.base import PagedCache
from model.engine.loading.machine import probe
from model.engine.loading.step_size import CHUNK, CHUNK_LARGE, LARGE_CARD, SMALLEST
from model.engine.policy import Policy
from model.engine.scheduling.chunk import Chunk
from model.engine.scheduling.pacing import Pacing
from model.gpu import support
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.decoder import Decoder
from model.phi3v.inputs.processing import Processor
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.network import Network
from model.phi3v.rope import LongRope
from scripts.benchmarks.harness.cards import ModelCosts
from scripts.benchmarks.harness.driver import greedy, random_prompts
from scripts.gpu_checking.parts import NotCheckedError

SPARE = 3 * GIB  # of the device's memory, for what steps and CUDA graphs need


@torch.no_grad()
def random_model(
    preset: Preset, device: torch.device, dtype: torch.dtype, **changes: Any
) -> Phi3VForCausalLM:
    """Random weights of a sensible scale; the same on each run.

    Args:
        preset: the sizes.
        device: where to make the weights.
        dtype: of the weights.
        changes: other values of ``config.json``.
    """
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Phi3VForCausalLM(Phi3VConfig(**config_for(preset, "random") | changes))
    finally:
        torch.set_default_dtype(before)
    for name, weight in model.named_parameters():
        if name == "lm_head.weight":
            weight.normal_(0, LOGIT_SPREAD * weight.shape[1] ** -0.5)
        elif name == "model.embed_tokens.weight":
            weight.normal_(0, 1)
        elif weight.ndim == 2 and "position_embedding" not in name:
            weight.normal_(0, weight.shape[1] ** -0.5)
    return model.eval().requires_grad_(False)


def processor_for(preset: Preset) -> Processor:
    """A processor with our own tokenizer, for models of these sizes."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_tokenizer(directory)
        write_json(directory / "preprocessor_config.json", preprocessor_config(preset))
        return Processor.from_checkpoint(directory)


def fused_network(model: Phi3VForCausalLM) -> Network:
    """A model with the GPU's decoder, also for Triton's interpreter.

    Raises:
        NotCheckedError: the kernels don't support the device.
    """
    device = model.model.embed_tokens.weight.device
    reason = support.unsupported_reason(model.config, model.dtype, device)
    if reason is not None:
        raise NotCheckedError(reason)
    from model.phi3v.decoder_gpu import GpuDecoder

    return Network(model.config, GpuDecoder(model), model.model.vision_embed_tokens, model.dtype)


def tokens_that_fit(network: Network) -> int:
    """Tokens whose keys and values fit into the memory that is free."""
    if network.decoder.device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for itself doesn't count as free
    available = probe(network.decoder.device, 0.95).available - SPARE
    item = network.dtype.itemsize / torch.bfloat16.itemsize
    return max(0, int(available / (ModelCosts.of(network.config).kv_bytes * item)))


def make_engine(
    network: Network,
    processor: Processor,
    sizes: EngineConfig,
    make: MakeRunner = make_runner,
    fixed_chunks: bool = False,
) -> Engine:
    """An engine without end-of-sequence tokens, prefix caching and prompt lookup.

    Args:
        network: the model.
        processor: with its tokenizer.
        sizes: of the engine.
        make: makes its runner.
        fixed_chunks: always prefill as much as possible, however long streams wait.
    """
    sizes = replace(sizes, prefix_caching=False, prompt_lookup=False)
    pacing = Pacing(sizes.prefill_chunk, fixed=True) if fixed_chunks else None
    return Engine(network, processor, frozenset(), sizes, make, pacing)


def prefill_chunk(device: torch.device) -> int:
    """The default on a device."""
    if device.type != "cuda":
        return SMALLEST.prefill_chunk
    is_large = torch.cuda.get_device_properties(device).total_memory >= LARGE_CARD
    return CHUNK_LARGE if is_large else CHUNK


class Runners:
    """Makes an engine's runner, and one without CUDA graphs that shares its cache.

    Attributes:
        fast: the engine's.
        plain: without graphs.
    """

    fast: Runner
    plain: Runner

    def make(self, decoder: Decoder, cache: PagedCache, rope: LongRope, policy: Policy) -> Runner:
        """See ``model.engine.engine.MakeRunner``."""
        self.plain = Runner(decoder, cache, rope, policy.fixed_rows)
        self.fast = make_runner(decoder, cache, rope, policy)
        return self.fast


def start_decoding(engine: Engine, lengths: list[int], new_tokens: int, seed: int = 0) -> None:
    """Compute prompts of these lengths until each sequence decodes; request i has length i."""
    for number, length in enumerate(lengths):
        (prompt,) = random_prompts(1, length, seed + number)
        engine.add(number, prompt, greedy(new_tokens))
    while engine.scheduler.waiting or not all(s.is_decoding for s in engine.scheduler.running):
        step(engine)


def next_chunks(engine: Engine) -> list[Chunk]:
    """The chunks of the next step, which may be computed several times."""
    return engine.scheduler.schedule()


def step(engine: Engine) -> list[tuple[int, int]]:
    """Run a step; returns number of the request and of its tokens for each output.

    Raises:
        ModelError: a sequence failed; its cause says why.
    """
    done = []
    for output in engine.step():
        if isinstance(output.result, Exception):
            raise output.result.__cause__ or output.result
        done.append((output.key[0], len(output.result.token_ids)))
    return done
