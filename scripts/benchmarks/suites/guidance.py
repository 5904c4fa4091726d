"""What a grammar costs per step, and what jump-ahead saves.

Savings: answers to a JSON schema with and without jump-ahead; the answers are the same. Cost: decode
steps with a schema that forces no tokens, compared with steps without a grammar.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

from tqdm import tqdm

from model.engine.engine import Engine
from model.engine.request import GrammarSpec, SamplingParams, TextDelta
from scripts.benchmarks.harness.driver import load, random_prompts
from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.report import Figure, Panel, Report, median

BATCH = 16
WORD = {"type": "string", "maxLength": 12}
RECORD = {
    "type": "object",
    "properties": {
        "title": WORD,
        "author": WORD,
        "year": {"type": "integer", "minimum": 1900, "maximum": 2030},
        "language": {"enum": ["English", "French", "German"]},
        "available": {"type": "boolean"},
    },
    "required": ["title", "author", "year", "language", "available"],
    "additionalProperties": False,
}
ENDLESS = {"type": "array", "items": {"type": "string"}, "minItems": 100_000}
JUMPING, WALKING = "with jump-ahead", "without jump-ahead"
GUIDED, FREE = "with a grammar", "without a grammar"


def run(options: Options) -> Report:
    """See the module."""
    walking = load(options.checkpoint("bench"), options.dtype, 2048, max_num_seqs=BATCH)
    walking = sibling(walking, jump_ahead=False)
    jumping = sibling(walking, jump_ahead=True)
    steps: dict[str, list[float]] = {JUMPING: [], WALKING: []}
    speeds: dict[str, list[float]] = {JUMPING: [], WALKING: []}
    costs: dict[str, list[float]] = {GUIDED: [], FREE: []}
    answers: dict[str, list[list[int]]] = {}
    different = 0
    for engine in (walking, jumping):
        ask(engine, BATCH, RECORD, 8)
    for number in tqdm(range(options.rounds), desc="guidance"):
        for name, engine in ((JUMPING, jumping), (WALKING, walking)):
            answers[name], taken, seconds = ask(engine, BATCH, RECORD, 1000, seed=number)
            steps[name].append(taken)
            speeds[name].append(sum(map(len, answers[name])) / seconds)
        different += sum(map(list.__ne__, answers[JUMPING], answers[WALKING]))
        for name, schema in ((GUIDED, ENDLESS), (FREE, None)):
            _, taken, seconds = ask(walking, BATCH, schema, options.new_tokens, seed=number)
            costs[name].append(1000 * seconds / taken)
    report = Report(
        "guidance",
        f"batch size {BATCH}; {options.dtype}; {describe()}",
        ["side", "steps for answers to a schema", "output tokens/s"],
    )
    for name in (WALKING, JUMPING):
        report.rows.append([name, median(steps[name]), median(speeds[name])])
    saved = median(steps[WALKING]) / median(steps[JUMPING])
    cost = median(costs[GUIDED]) / median(costs[FREE]) - 1
    report.figures = [
        Figure("steps without / with jump-ahead", saved, "at least", 1.5),
        Figure(
            "tokens/s with / without jump-ahead",
            median(speeds[JUMPING]) / median(speeds[WALKING]),
            "at least",
            1.0,
        ),
        Figure("relative cost of a grammar per step", cost, "at most", 0.05),
        Figure(
            "answers changed by jump-ahead",
            different,
            "at most",
            0 if options.dtype == "float32" else BATCH,
        ),
    ]
    report.notes.append(
        f"a step takes {median(costs[GUIDED]):.3g} ms with grammars and {median(costs[FREE]):.3g} ms without"
    )
    report.panels = [
        Panel("Steps for answers to a schema", "", "steps", {"": steps}),
        Panel("A decode step", "", "ms", {"": costs}),
    ]
    report.data = {"steps": steps, "tokens_per_second": speeds, "milliseconds": costs}
    return report


def sibling(engine: Engine, **changes: bool) -> Engine:
    """Another engine with the same weights."""
    config = replace(engine.config, **changes)
    return Engine(engine.network, engine.processor, engine.stop_ids, config)


def ask(
    engine: Engine, count: int, schema: object, tokens: int, seed: int = 0
) -> tuple[list[list[int]], int, float]:
    """Answers, and the steps and seconds from when all have a first token."""
    grammar = None if schema is None else GrammarSpec("json_schema", json.dumps(schema))
    for number, inputs in enumerate(random_prompts(count, 32, seed)):
        params = SamplingParams(
            temperature=1.0,
            seed=number,
            max_tokens=tokens,
            ignore_eos=grammar is None,
            grammar=grammar,
        )
        engine.add(number, inputs, params, grammar=engine.compile(params))
    answers: dict[int, list[int]] = {number: [] for number in range(count)}
    started, steps = 0.0, 0
    while engine.has_work:
        outputs = engine.step()
        if all(answers.values()):
            steps += 1
        else:
            started = time.perf_counter()
        for output in outputs:
            if not isinstance(output.result, TextDelta):
                raise output.result
            answers[output.key[0]] += output.result.token_ids
    return list(answers.values()), steps, time.perf_counter() - started
