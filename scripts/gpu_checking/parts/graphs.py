"""CUDA graphs and batches change no result, and a step waits for the device once.

A graph launches the kernels that the plain path launches, so results are equal bit by bit where both
compute the same number of rows. A graph with unused rows may get other kernels from cuBLAS, which differ
in the last bits; so may batches, unless the engine is deterministic.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

from model.demo.random_checkpoint import PRESETS
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.execution.runner import Runner
from model.engine.request import SamplingParams
from model.engine.sampling import sampler
from model.engine.scheduling.chunk import Chunk
from model.errors import ModelError
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.processing import Processor, PromptInputs
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.transfer import to_host
from scripts.benchmarks.harness.driver import answer, greedy, random_prompts
from scripts.benchmarks.harness.report import Figure, Report
from scripts.gpu_checking.device import name_of, synchronize
from scripts.gpu_checking.engines import (
    Runners,
    fused_network,
    make_engine,
    next_chunks,
    processor_for,
    random_model,
    start_decoding,
    step,
)
from scripts.gpu_checking.options import Options
from scripts.gpu_checking.parts import NotCheckedError

SIZES = EngineConfig(2048, max_num_seqs=8, num_blocks=900)
LENGTHS = [33, 16, 5, 300, 1030, 2, 700, 64]  # tokens of the prompts
# Sequences of a step, and tokens that each guesses; the first ones fill a graph.
FILLING = [(1, 0), (4, 0), (8, 0), (1, 3), (2, 7), (4, 3)]
PADDED = [(3, 0), (5, 0), (3, 2), (2, 5)]
# Of the largest logit; from other kernels for the same products.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
COMPANY = [30, 7, 150, 2]  # tokens of prompts; the first is also computed alone
STEPS = 12
MESSAGE = Message("user", "look", (MessageImage(lambda: Image.linear_gradient("L"), True),))
SAMPLED = [
    SamplingParams(temperature=0, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=5),
    SamplingParams(temperature=1, presence_penalty=0.5, max_tokens=40, ignore_eos=True),
]


def check(options: Options) -> Report:
    """Compare graphs with the plain path, sequences alone and in company, and look for waiting."""
    report = Report(
        "graphs",
        "logits of CUDA graphs, and of the same kernels launched one by one",
        ["dtype", "sequences", "tokens of each", "fills the graph", "largest difference"],
    )
    # The official width with fewer layers is enough, and quick.
    preset = PRESETS["tiny" if options.preset_name == "tiny" else "large"]
    processor = processor_for(preset)
    for dtype in dict.fromkeys((torch.float32, options.dtype)):
        model = random_model(preset, options.device, dtype)
        try:
            fused_network(model)
        except NotCheckedError as reason:
            if dtype == options.dtype:
                raise
            report.notes.append(f"no {name_of(dtype)}: {reason}")
            continue
        _replays(model, processor, report, options)
        found = deterministic_difference(model, processor)
        report.figures.append(
            Figure(
                f"{name_of(dtype)}, --deterministic: difference alone and in company",
                found,
                "at most",
                0,
            )
        )
        if options.on_gpu and dtype == options.dtype:
            waiting = waits(model, processor, report)
            report.figures.append(Figure("hidden waits for the device", waiting, "at most", 0))
    return report


def _replays(
    model: Phi3VForCausalLM, processor: Processor, report: Report, options: Options
) -> None:
    """Add the differences of graphs from the plain path."""
    runners = Runners()
    engine = make_engine(fused_network(model), processor, SIZES, runners.make, fixed_chunks=True)
    name = name_of(model.dtype)
    if not runners.fast.graph_rows:
        if not options.on_gpu:
            raise NotCheckedError("there are no CUDA graphs on a CPU")
        report.figures.append(Figure(f"{name}: CUDA graphs (see paths)", 0, "at least", 1))
        return
    start_decoding(engine, LENGTHS, new_tokens=200)
    chunks = next_chunks(engine)
    worst = {True: 0.0, False: 0.0}
    for fills, sizes in ((True, FILLING), (False, PADDED)):
        for rows, guessed in sizes:
            difference = replay_difference(
                engine, runners, _guessing(engine, chunks[:rows], guessed)
            )
            worst[fills] = max(worst[fills], difference)
            report.rows.append([name, rows, 1 + guessed, "yes" if fills else "no", difference])
    report.figures += [
        Figure(f"{name}: difference of graphs that are filled", worst[True], "at most", 0),
        Figure(
            f"{name}: of graphs with unused rows, of the largest logit",
            worst[False],
            "at most",
            TOLERANCE[model.dtype],
        ),
    ]


def _guessing(engine: Engine, chunks: list[Chunk], guessed: int) -> list[Chunk]:
    guess = tuple(range(500, 500 + guessed))
    for chunk in chunks:
        engine.blocks.grow(chunk.sequence.block_table, len(chunk.sequence) + guessed)
    return [replace(chunk, guess=guess) for chunk in chunks]


@torch.inference_mode()
def replay_difference(engine: Engine, runners: Runners, chunks: list[Chunk]) -> float:
    """The largest difference of a graph's logits from the plain path's, of the largest logit."""
    with patch.object(runners.fast, "_embed", side_effect=AssertionError("no graph was used")):
        found = runners.fast.run(chunks)
    return _difference(found, runners.plain.run(chunks))


def _difference(found: Tensor, expected: Tensor) -> float:
    difference = (found - expected).abs().max() / expected.abs().max()
    return difference.nan_to_num(nan=torch.inf).item()


def deterministic_difference(model: Phi3VForCausalLM, processor: Processor) -> float:
    """How far an answer's logits are from those in company, in deterministic mode."""
    sizes = replace(SIZES, deterministic=True)
    prompts = [random_prompts(1, length, length)[0] for length in COMPANY]
    alone, company = (
        first_logits(make_engine(fused_network(model), processor, sizes), prompts[:count])
        for count in (1, len(prompts))
    )
    return _difference(company, alone)


def first_logits(engine: Engine, prompts: list[PromptInputs]) -> Tensor:
    """Logits of each step of the first of several answers."""
    rows: list[Tensor] = []
    run = Runner.run

    def keep(self: Runner, chunks: list[Chunk]) -> Tensor:
        logits_SV = run(self, chunks)
        keys = [chunk.sequence.key[0] for chunk in chunks if chunk.num_sampled]
        rows.extend(logits_SV[i].clone() for i, key in enumerate(keys) if key == 0)
        return logits_SV

    with patch.object(Runner, "run", keep):
        answer(engine, prompts, greedy(STEPS))
    return torch.stack(rows)


def waits(model: Phi3VForCausalLM, processor: Processor, report: Report) -> int:
    """Count kinds of requests whose steps wait for the device, besides the copy of sampled tokens."""
    found = 0
    network = fused_network(model)
    for params in SAMPLED:
        engine = make_engine(network, processor, SIZES)
        for number, length in enumerate(LENGTHS[:4]):
            (prompt,) = random_prompts(1, length, number)
            engine.add(number, prompt, params)
        engine.add(len(LENGTHS), engine.processor([MESSAGE], SIZES.max_model_len - 1), params)
        synchronize(network.decoder.device)
        logging.getLogger("model").setLevel(logging.CRITICAL)  # which would log each of them
        try:
            with no_waits():
                for _ in range(STEPS):
                    step(engine)
        except (ModelError, RuntimeError) as error:
            found += 1
            report.notes.append(f"a step with {params} waits: {str(error)[:300]}")
        finally:
            logging.getLogger("model").setLevel(logging.NOTSET)
    return found


@contextmanager
def no_waits() -> Iterator[None]:
    """Make operations that wait for the device raise, except the copy of a step's results."""

    def allowed(*tensors: Tensor) -> list[Tensor]:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return to_host(*tensors)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    with patch.object(sampler, "to_host", allowed):
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
