"""Output tokens/s of the engine and of transformers with the same weights, in one process.

``generate()`` answers the prompts one by one, with the class that the engine loads. transformers'
``ContinuousBatchingManager`` gets all prompts at once, with the text-only checkpoint and its fastest
settings on a CPU (``sdpa`` is twice as fast as ``paged|eager``; the page size does not matter;
``torch.compile`` keeps recompiling and is twenty times slower). Prefix caching is off on all sides. In
float32 all answers must be the same; in bfloat16 they may differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from model.phi3v.inputs.processing import PromptInputs
from model.phi3v.modeling import Phi3VForCausalLM
from scripts.benchmarks.harness.driver import answer, greedy, load, random_prompts
from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.report import Figure, Panel, Report, median

ENGINE, GENERATE, BATCHING = "engine", "generate() one by one", "continuous batching"
AT_LEAST = {
    GENERATE: {16: 7.0},
    BATCHING: {1: 1.3, 4: 1.4, 8: 1.5, 16: 1.5},
}
Side = Callable[[list[list[int]]], list[list[int]]]  # prompts to answers, in token ids


def run(options: Options) -> Report:
    """See the module."""
    directory, dtype = options.checkpoint("bench"), getattr(torch, options.dtype)
    batching = ContinuousBatching(
        options.checkpoint("bench", text_only=True), dtype, options.new_tokens
    )
    sides: dict[str, Side] = {
        ENGINE: engine_side(directory, options),
        GENERATE: generate_side(directory, dtype, options.new_tokens),
        BATCHING: batching,
    }
    speeds, different = measure(sides, options)
    batching.close()
    report = Report(
        "engine",
        f"output tokens/s; {options.dtype}, {options.prompt_tokens}-token prompts, "
        f"{options.new_tokens} new; {describe()}",
        ["concurrent", *sides, *(f"engine / {name}" for name in AT_LEAST)],
    )
    medians = {
        name: {count: median(values) for count, values in series.items()}
        for name, series in speeds.items()
    }
    for count in options.concurrency:
        ratios = {name: medians[ENGINE][count] / medians[name][count] for name in AT_LEAST}
        report.rows.append([count, *(medians[name][count] for name in sides), *ratios.values()])
        report.figures += [
            Figure(f"engine / {name}, {count} concurrent", ratio, "at least", AT_LEAST[name][count])
            for name, ratio in ratios.items()
            if count in AT_LEAST[name]
        ]
    total = options.rounds * sum(options.concurrency)
    if options.dtype == "float32":
        report.figures += [
            Figure(f"answers that differ from {name}, of {total}", number, "at most", 0)
            for name, number in different.items()
        ]
    else:
        report.notes.append(
            f"answers that differ from the engine's, of {total} (expected in {options.dtype}): "
            + ", ".join(f"{name} {number}" for name, number in different.items())
        )
    report.panels = [Panel("Throughput", "concurrent requests", "output tokens/s", speeds)]
    report.data = {"tokens_per_second": speeds, "different": different}
    return report


def measure(
    sides: dict[str, Side], options: Options
) -> tuple[dict[str, dict[int, list[float]]], dict[str, int]]:
    """Speeds by side and concurrency, and how many answers of each side differ from the engine's."""
    speeds: dict[str, dict[int, list[float]]] = {
        name: {count: [] for count in options.concurrency} for name in sides
    }
    different = dict.fromkeys([name for name in sides if name != ENGINE], 0)
    for side in sides.values():  # warm up compilers and allocators
        side(token_ids(4, options.prompt_tokens, seed=1_000_000))
    with tqdm(total=options.rounds * len(options.concurrency) * len(sides), desc="engine") as bar:
        for number in range(options.rounds):
            for count in options.concurrency:
                prompts = token_ids(count, options.prompt_tokens, seed=number)
                expected: list[list[int]] = []
                for name, side in sides.items():
                    started = time.perf_counter()
                    answers = side(prompts)
                    seconds = time.perf_counter() - started
                    speeds[name][count].append(count * options.new_tokens / seconds)
                    if name == ENGINE:
                        expected = answers
                    else:
                        different[name] += sum(map(list.__ne__, answers, expected))
                    bar.update()
    return speeds, different


def token_ids(count: int, length: int, seed: int) -> list[list[int]]:
    return [prompt.token_ids for prompt in random_prompts(count, length, seed)]


def engine_side(directory: Path, options: Options) -> Side:
    engine = load(directory, options.dtype, 2048)

    def side(prompts: list[list[int]]) -> list[list[int]]:
        answers = answer(engine, list(map(PromptInputs, prompts)), greedy(options.new_tokens))
        return [found.token_ids for found in answers]

    return side


def generate_side(directory: Path, dtype: torch.dtype, new_tokens: int) -> Side:
    network = Phi3VForCausalLM.from_pretrained(directory, dtype=dtype).eval()

    @torch.inference_mode()
    def side(prompts: list[list[int]]) -> list[list[int]]:
        answers = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            generated = network.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            answers.append(generated[0, len(prompt) :].tolist())
        return answers

    return side


class ContinuousBatching:
    """transformers' continuous batching; its thread sleeps while idle."""

    def __init__(self, twin: Path, dtype: torch.dtype, new_tokens: int) -> None:
        network: Any = AutoModelForCausalLM.from_pretrained(
            twin, dtype=dtype, attn_implementation="sdpa"
        ).eval()
        self._new_tokens = new_tokens
        self._manager = network.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            ContinuousBatchingConfig(
                allow_block_sharing=False, page_size=32, num_blocks=1024, max_batch_tokens=512
            ),
        )
        self._manager.start()

    def __call__(self, prompts: list[list[int]]) -> list[list[int]]:
        names = self._manager.add_requests(prompts, max_new_tokens=self._new_tokens)
        answers: dict[str, list[int]] = {}
        while len(answers) < len(names):
            result = self._manager.get_result(timeout=1)
            if result is None:
                if not self._manager.is_running():
                    raise RuntimeError("transformers' continuous batching has stopped")
            elif result.error is not None:
                raise RuntimeError(result.error)
            elif result.is_finished():
                answers[result.request_id] = result.generated_tokens
        return [answers[name] for name in names]

    def close(self) -> None:
        self._manager.stop(block=True)
        self._manager.destroy()
