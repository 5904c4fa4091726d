"""Asks a server about pictures that the model was not trained on, and prints the accuracy.

Two sets: ``held-out`` pictures, drawn like the training's but with other fonts; and ``strangers``
(``strangers.py``), with differently drawn pictures and other questions.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.demo_training.data.asking import Question
from scripts.demo_training.data.conversations import INSTRUCTIONS, instructed, typed
from scripts.demo_training.data.pictures import draw, fonts
from scripts.demo_training.data.questions import KINDS, ask, follow_up
from scripts.demo_training.data.scenes import Scene, random_scene
from scripts.demo_training.data.smalltalk import (
    FALLBACK,
    NEEDS_PICTURE,
    beside_the_point,
    small_talk,
)
from scripts.demo_training.evaluation.cases import Case, data_url, user
from scripts.demo_training.evaluation.strangers import stranger_cases

HELD_OUT_SEED = 1_000_003
AT_ONCE = 4
STYLES = tuple(INSTRUCTIONS)
SHAPE_KINDS = tuple(kind for kind in KINDS if kind != "glyph")


def held_out_cases(count: int, seed: int = HELD_OUT_SEED) -> Iterator[Case]:
    """Cases of every kind in turn."""
    makers = [
        *SHAPE_KINDS,
        "glyph",
        "glyph",
        *STYLES,
        "follow-up",
        "second picture",
        "no picture",
        "off topic",
    ]
    for number in range(count):
        yield _case(np.random.default_rng((seed, number)), makers[number % len(makers)])


def _case(rng: np.random.Generator, kind: str) -> Case:
    if kind == "no picture":
        if rng.random() < 0.5:
            said, answer = small_talk(rng)
        else:
            said, answer = ask(rng, random_scene(rng, "shapes")).text, NEEDS_PICTURE
        return Case(kind, [user(typed(rng, said))], answer)
    scene = random_scene(rng, "glyph" if kind == "glyph" or rng.random() < 0.15 else "shapes")
    wanted = (
        kind
        if kind in KINDS
        else str(rng.choice(("colour", "shape")))
        if kind == "french"
        else None
    )
    question = _suitable(rng, scene, wanted, kind)
    while wanted and question.kind not in (wanted, "digit", "letter", "digit or letter"):
        scene = random_scene(rng, "glyph" if kind == "glyph" else "shapes")
        question = _suitable(rng, scene, wanted, kind)
    picture = draw(rng, scene, fonts(held_out=True))
    url = data_url(rng, picture)
    if kind in STYLES:
        asked = instructed(rng, question.text, kind)
        system, _, rest = asked.partition("\n")
        messages = [user(asked, url)]
        if rest:
            messages = [{"role": "system", "content": system}, user(rest, url)]
        return Case(kind, messages, question.answer.in_style(kind), picture)
    if kind == "off topic":
        return Case(kind, [user(typed(rng, beside_the_point(rng)), url)], FALLBACK, picture)
    first = user(typed(rng, question.text), url)
    replied = {"role": "assistant", "content": question.answer.sentence}
    if kind == "follow-up" and question.subject is not None:
        question = follow_up(rng, question.subject)
        return Case(
            kind,
            [first, replied, user(typed(rng, question.text))],
            question.answer.sentence,
            picture,
        )
    if kind == "second picture":
        other = random_scene(rng)
        question = ask(rng, other)
        picture = draw(rng, other, fonts(held_out=True))
        second = user(typed(rng, question.text), data_url(rng, picture))
        return Case(
            _shown_kind(kind, question), [first, replied, second], question.answer.sentence, picture
        )
    return Case(_shown_kind(kind, question), [first], question.answer.sentence, picture)


def _suitable(rng: np.random.Generator, scene: Scene, wanted: str | None, kind: str) -> Question:
    question = ask(rng, scene, wanted)
    while (kind == "word" and question.kind == "describe") or (
        kind == "follow-up" and question.subject is None
    ):
        question = ask(rng, scene, "colour" if kind == "follow-up" else None)
        if question.subject is None and kind == "follow-up":
            question = ask(rng, scene, "where")
            break
    return question


def _shown_kind(kind: str, question: Question) -> str:
    return question.kind if kind == "glyph" else kind


def send(url: str, key: str, messages: list[dict[str, Any]]) -> str:
    """The server's greedy answer."""
    body = json.dumps({"messages": messages, "temperature": 0, "max_tokens": 120}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url}/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def run(
    url: str, key: str, cases: list[Case], title: str, failures: Path | None = None
) -> dict[str, list[bool]]:
    """Send all cases; returns by kind which answers were right."""
    rights: dict[str, list[bool]] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = pool.map(lambda case: send(url, key, case.messages), cases)
        for number, (case, answer) in enumerate(
            zip(cases, tqdm(answers, title, total=len(cases), disable=None), strict=True)
        ):
            right = case.is_right(answer)
            rights.setdefault(case.kind, []).append(right)
            if not right and failures is not None:
                _keep(failures, f"{title}-{number:04}", case, answer)
    return rights


def _keep(folder: Path, name: str, case: Case, answer: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if case.picture is not None:
        case.picture.save(folder / f"{name}.png")
    asked = case.messages[-1]["content"]
    text = asked if isinstance(asked, str) else asked[0]["text"]
    wanted = case.expected or " ".join(case.keywords)
    with (folder / "failures.txt").open("a") as file:
        file.write(f"{name} [{case.kind}] {text!r}\n    wanted {wanted!r}\n    got    {answer!r}\n")


def accuracies(rights: dict[str, list[bool]]) -> dict[str, float]:
    """Accuracy by kind."""
    return {kind: sum(right) / len(right) for kind, right in rights.items()}


def print_table(title: str, rights: dict[str, list[bool]]) -> None:
    """Print the accuracy by kind and the mean of kinds."""
    print(f"\n{title:18} questions   right")
    for kind, share in accuracies(rights).items():
        print(f"{kind:18} {len(rights[kind]):9} {share:7.1%}")
    shares = list(accuracies(rights).values())
    print(
        f"{'mean of kinds':18} {sum(map(len, rights.values())):9} {sum(shares) / len(shares):7.1%}"
    )


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a running server, or start one for it."""
    server = None
    url: str = options.url
    if options.url is None:
        from tests.support.servers.live_server import start_server

        server = start_server(
            "--model", options.model, "--dtype", options.dtype, "--api-key", options.key
        )
        url = server.url
    try:
        for title, cases in (
            ("held-out", held_out_cases(options.questions)),
            ("strangers", stranger_cases(options.questions // 2)),
        ):
            drawn = list(tqdm(cases, f"drawing {title}", disable=None))
            print_table(title, run(url, options.key, drawn, title, options.failures))
    finally:
        if server is not None:
            server.stop()
