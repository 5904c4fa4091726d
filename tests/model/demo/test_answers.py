"""The demo model tells the truth about pictures it never saw, over HTTP, and so shows mistakes that
random weights would hide: of orientation, colour channels, folding, kept images, and caches."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image, ImageDraw

from scripts.demo_training.evaluation.cases import user
from scripts.demo_training.evaluation.evaluate import (
    accuracies,
    held_out_cases,
    print_table,
    run,
    send,
)
from scripts.demo_training.evaluation.strangers import stranger_cases
from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server

LEFT, RIGHT, TOP, BOTTOM = (70, 120), (230, 120), (150, 60), (150, 240)


@pytest.fixture(scope="module", params=["auto", "float32"])
def demo(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    live = start_server("--dtype", request.param, "--api-key", API_KEY)
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


@pytest.fixture(scope="module")
def demo_once() -> Iterator[LiveServer]:
    live = start_server("--api-key", API_KEY)
    yield live
    live.stop()


def picture(
    *things: tuple[str, str, tuple[int, int], int], size: tuple[int, int] = (300, 300)
) -> str:
    """A data URL of circles, squares and rings (name, colour, centre, radius) on grey."""
    image = Image.new("RGB", size, (170, 175, 180))
    pen = ImageDraw.Draw(image)
    for name, colour, (x, y), r in things:
        box = (x - r, y - r, x + r, y + r)
        if name == "circle":
            pen.ellipse(box, fill=colour)
        elif name == "square":
            pen.rectangle(box, fill=colour)
        else:
            pen.ellipse(box, outline=colour, width=r // 3)
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(live: LiveServer, *messages: dict[str, Any]) -> str:
    return send(live.url, API_KEY, list(messages))


def test_where_it_is(demo: LiveServer) -> None:
    """A transposed or mirrored picture, crop or patch grid moves things."""
    for at, place in ((LEFT, "left"), (RIGHT, "right"), (TOP, "top"), (BOTTOM, "bottom")):
        url = picture(("circle", "red", (at[0], 150) if at in (LEFT, RIGHT) else at, 40))
        assert place in ask(demo, user("Where is the circle?", url))


def test_where_it_is_in_a_tall_picture(demo: LiveServer) -> None:
    url = picture(("square", "blue", (100, 60), 40), size=(200, 400))
    assert "top" in ask(demo, user("Where is the square?", url))
    url = picture(("square", "blue", (60, 100), 40), size=(400, 200))
    assert "left" in ask(demo, user("Where is the square?", url))


def test_which_is_left_of_which(demo: LiveServer) -> None:
    url = picture(("circle", "red", LEFT, 40), ("square", "blue", RIGHT, 40))
    assert ask(demo, user("Is the circle left of the square?", url)).startswith("Yes")
    assert ask(demo, user("Is the square left of the circle?", url)).startswith("No")


@pytest.mark.parametrize("colour", ["red", "blue", "green", "yellow", "orange"])
def test_colours(demo: LiveServer, colour: str) -> None:
    """Swapped channels make red blue, and yellow something else."""
    url = picture(("circle", colour, (150, 150), 70))
    assert ask(demo, user("What colour is the circle?", url)) == f"The circle is {colour}."


def test_system_text_counts(demo: LiveServer) -> None:
    url = picture(("circle", "red", (150, 150), 70))
    question = user("What colour is the circle?", url)
    french = {"role": "system", "content": "Answer in French."}
    word = {"role": "system", "content": "Answer in one word."}
    assert ask(demo, word, question) == "Red"
    assert ask(demo, french, question) == "Rouge"


def test_the_last_picture_counts(demo: LiveServer) -> None:
    first = user("What colour is the circle?", picture(("circle", "red", (150, 150), 70)))
    said = {"role": "assistant", "content": "The circle is red."}
    second = user("What colour is the circle?", picture(("circle", "green", (150, 150), 70)))
    assert ask(demo, first, said, second) == "The circle is green."


def test_the_first_picture_stays_without_another(demo: LiveServer) -> None:
    first = user("What colour is the shape?", picture(("ring", "blue", (150, 150), 90)))
    said = {"role": "assistant", "content": "The ring is blue."}
    assert "ring" in ask(demo, first, said, user("And what shape is it?"))


def test_pictures_at_once_and_again_are_not_mixed(demo: LiveServer) -> None:
    """Prefix and embedding caches must tell apart prompts that differ in their picture alone."""
    colours = ["red", "green", "blue", "yellow", "black", "white"] * 3
    urls = {colour: picture(("square", colour, (150, 150), 70)) for colour in colours}
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(
            lambda c: ask(demo, user("What colour is the square?", urls[c])), colours
        )
    assert list(answers) == [f"The square is {colour}." for colour in colours]


def test_it_asks_for_a_picture(demo: LiveServer) -> None:
    assert "picture" in ask(demo, user("What colour is the circle?"))
    assert ask(demo, user("Hello")).startswith("Hello!")


def check(
    live: LiveServer, questions: int, strangers: int, least: float, least_kind: float
) -> None:
    for title, cases, floor in (
        ("held-out", held_out_cases(questions), least),
        ("strangers", stranger_cases(strangers), least),
    ):
        rights = run(live.url, API_KEY, list(cases), title)
        print_table(title, rights)
        shares = accuracies(rights)
        assert sum(shares.values()) / len(shares) >= floor
        assert min(shares.values()) >= least_kind, shares


def test_a_sample(demo_once: LiveServer) -> None:
    check(demo_once, 100, 50, least=0.9, least_kind=0.5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_questions(demo_once: LiveServer) -> None:
    check(demo_once, 1080, 500, least=0.95, least_kind=0.82)
