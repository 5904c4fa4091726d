"""Tokens per second of the engine against transformers' generate() on the same weights.

Both sides are measured in turn, several rounds in one run, and compared by medians; figures of
different runs or machines do not compare. Prints a table; writes JSON and a plot.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from model.demo.random_checkpoint import PRESETS, write_checkpoint
from model.engine.config import LoadOptions
from model.engine.engine import Engine
from model.engine.loading import load_engine
from model.engine.request import SamplingParams, TextDelta
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.processing import PromptInputs

PROMPT_TOKENS, NEW_TOKENS = 100, 64


@dataclass
class Figures:
    """Output tokens per second in each round."""

    generate: list[float]
    engine: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.engine) / statistics.median(self.generate)


def prompts(count: int, seed: int) -> list[PromptInputs]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(300, 32000, (count, PROMPT_TOKENS), generator=generator)
    return [PromptInputs(row) for row in ids.tolist()]


def time_engine(engine: Engine, batch: list[PromptInputs]) -> tuple[float, list[list[int]]]:
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    answers: list[list[int]] = [[] for _ in batch]
    started = time.perf_counter()
    for i, prompt in enumerate(batch):
        engine.add(i, prompt, params)
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output.result, TextDelta)
            answers[output.key[0]] += output.result.token_ids
    return len(batch) * NEW_TOKENS / (time.perf_counter() - started), answers


@torch.inference_mode()
def time_generate(
    network: Phi3VForCausalLM, batch: list[PromptInputs]
) -> tuple[float, list[list[int]]]:
    answers = []
    started = time.perf_counter()
    for prompt in batch:
        ids = torch.tensor([prompt.token_ids])
        out = network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        answers.append(out[0, PROMPT_TOKENS:].tolist())
    return len(batch) * NEW_TOKENS / (time.perf_counter() - started), answers


def measure(
    network: Phi3VForCausalLM, engine: Engine, concurrency: list[int], rounds: int
) -> tuple[dict[int, Figures], int]:
    """Figures by concurrency, and how many answers differed between the two sides."""
    figures = {count: Figures([], []) for count in concurrency}
    different = 0
    time_engine(engine, prompts(1, 0))
    time_generate(network, prompts(1, 0))
    with tqdm(total=rounds * len(concurrency), desc="Measuring") as bar:
        for number in range(rounds):
            for count in concurrency:
                batch = prompts(count, number)
                speed, ours = time_engine(engine, batch)
                figures[count].engine.append(speed)
                speed, theirs = time_generate(network, batch)
                figures[count].generate.append(speed)
                different += sum(a != b for a, b in zip(ours, theirs, strict=True))
                bar.update()
    return figures, different


def report(figures: dict[int, Figures], different: int, out: Path, title: str) -> None:
    print(f"\n{title}\n")
    print("| concurrent | generate() one by one, tok/s | engine, tok/s | ratio |")
    print("|---|---|---|---|")
    for count, sides in figures.items():
        generate, engine = statistics.median(sides.generate), statistics.median(sides.engine)
        print(f"| {count} | {generate:.1f} | {engine:.1f} | {sides.ratio:.2f} |")
    total = sum(count * len(sides.engine) for count, sides in figures.items())
    print(f"\nanswers that differ: {different} of {total}")
    out.mkdir(parents=True, exist_ok=True)
    content = {str(count): vars(sides) for count, sides in figures.items()}
    (out / "bench_engine.json").write_text(json.dumps({"title": title, **content}, indent=2))
    plot(figures, out / "bench_engine.png", title)
    print(f"wrote {out}/bench_engine.json and .png")


def plot(figures: dict[int, Figures], path: Path, title: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    counts = list(figures)
    for label, name in (("engine", "engine"), ("generate", "generate() one by one")):
        medians = [statistics.median(getattr(figures[count], label)) for count in counts]
        axes.plot(counts, medians, marker="o", label=name)
        for count in counts:
            values = getattr(figures[count], label)
            axes.vlines(count, min(values), max(values), alpha=0.4)
    axes.set(xlabel="concurrent requests", ylabel="output tokens/s", title=title)
    axes.set_xticks(counts)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint; the bench preset by default")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = args.model
        if model is None:
            model = Path(directory) / "bench"
            write_checkpoint(model, PRESETS["bench"], name="phi3v-bench")
        engine = load_engine(
            model, LoadOptions(model=str(model), dtype=args.dtype, max_model_len=2048)
        )
        network = Phi3VForCausalLM.from_pretrained(model, dtype=getattr(torch, args.dtype)).eval()
        figures, different = measure(network, engine, args.concurrency, args.rounds)
    threads = torch.get_num_threads()
    title = f"{args.dtype}, {threads} CPU threads, {PROMPT_TOKENS}-token prompts, {NEW_TOKENS} new"
    report(figures, different, args.out, title)


if __name__ == "__main__":
    main()
