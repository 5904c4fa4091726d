"""The playground of a server with ``--images-per-prompt 3``: a message and a conversation keep several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FilePayload, expect

from tests.playground.page import Playground, browser, open_page
from tests.playground.test_code import LANGUAGES, copied, run, text_of
from tests.playground.test_pictures import encoded
from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server

__all__ = ["browser", "open_page"]


@pytest.fixture(scope="module")
def several(tiny: Path) -> Iterator[LiveServer]:
    live = start_server(
        *("--model", str(tiny), "--dtype", "float32", "--api-key", API_KEY),
        *("--images-per-prompt", "3"),
    )
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


@pytest.fixture
def playground(open_page: Callable[..., Playground], several: LiveServer) -> Playground:
    made = open_page(several)
    made.open(several.key)
    made.set(temperature=0, ignore_eos=True, max_tokens=4, detail="low")
    return made


def pick(playground: Playground, *names: str) -> None:
    """Pick files at once."""
    data = encoded("PNG", (30, 20))
    files: list[FilePayload] = [
        {"name": name, "mimeType": "image/png", "buffer": data} for name in names
    ]
    playground.page.get_by_label("Add picture").set_input_files(files)


def attached(playground: Playground) -> list[str]:
    return playground.page.locator("#attachment strong").all_inner_texts()


def kinds(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    return ["text"] if isinstance(content, str) else [part["type"] for part in content]


def test_a_message_has_several_pictures(playground: Playground) -> None:
    """In the order in which they were added; one can be removed; no more than the server takes."""
    items = playground.page.locator("#attachment li")
    pick(playground, "a.png", "b.png")
    expect(items).to_have_count(2)
    pick(playground, "c.png", "d.png")
    complaint = playground.page.get_by_role("alert").filter(has_text="at most 3 pictures")
    expect(complaint).to_contain_text("the rest were left out")
    assert attached(playground) == ["a.png", "b.png", "c.png"]
    playground.page.get_by_role("button", name="Remove the picture b.png").click()
    expect(items).to_have_count(2)
    turn = playground.ask("compare")
    assert playground.shown(turn)
    (message,) = playground.bodies[-1]["messages"]
    assert kinds(message) == ["image_url", "image_url", "text"]
    for name in ("a.png", "c.png"):
        expect(turn.get_by_role("img", name=name)).to_be_visible()
    expect(playground.page.locator("#attachment")).to_be_hidden()


def test_the_last_pictures_of_a_conversation_are_sent(playground: Playground) -> None:
    items = playground.page.locator("#attachment li")
    for names in (("a.png",), ("b.png", "c.png"), ("d.png",)):
        pick(playground, *names)
        expect(items).to_have_count(len(names))
        assert playground.shown(playground.ask("and?"))
    users = [each for each in playground.bodies[-1]["messages"] if each["role"] == "user"]
    assert [kinds(each).count("image_url") for each in users] == [0, 2, 1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_programs_send_all_pictures(playground: Playground, language: str) -> None:
    pick(playground, "a.png", "b.png")
    expect(playground.page.locator("#attachment li")).to_have_count(2)
    answer = playground.shown(playground.ask("compare"))
    program = copied(playground, language)
    assert language == "curl" or "PICTURE_2 = " in program
    assert text_of(language, run(language, program)).split() == answer.split()
