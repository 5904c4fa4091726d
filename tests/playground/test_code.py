"""A request of the playground as a program: it runs as copied and sends exactly that request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.playground.page import Playground, browser, open_page, playground
from tests.support.programs import program as needed
from tests.support.servers.live_server import API_KEY, LiveServer

__all__ = ["browser", "open_page", "playground"]

LANGUAGES = ["curl", "Azure Python", "OpenAI Python"]
# Every character that a shell, JSON or Python might take for its own, and some that hide.
NASTY = """it's "quoted" $HOME `id` $(id) \\n \\ 100% !x #y & ; | <a> 'JSON'
JSON
second line\ttab é 漢字 🙂 zero\u200bwidth \u2028 \x7f ${jndi} {curly} \\u0041 '''"""

EVERYTHING = {
    "system": NASTY,
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": "9007199254740993",
    "max_tokens": 3,
    "stop": "it's\n$x",
    "top_k": 40,
    "min_p": 0.01,
    "min_tokens": 1,
    "presence_penalty": 0.1,
    "frequency_penalty": -0.1,
    "repetition_penalty": 1.1,
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 2,
    "detail": "low",
}


def copied(playground: Playground, language: str, with_key: bool = False) -> str:
    """The program, from the clipboard."""
    page = playground.page
    page.locator(".turn").last.get_by_role("button", name="Copy as code").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(language, exact=True).click()
    if with_key:
        dialog.get_by_label("Include my API key").check()
    dialog.get_by_role("button", name="Copy").click()
    dialog.get_by_text("Copied", exact=True).wait_for()
    dialog.get_by_role("button", name="Close").click()
    return str(page.evaluate("navigator.clipboard.readText()"))


def run(language: str, program: str, key: str | None = API_KEY) -> str:
    """What the program prints."""
    if language == "curl":
        needed("curl")
    command = ["bash", "-s"] if language == "curl" else [sys.executable, "-"]
    environment = {name: value for name, value in os.environ.items() if name != "PHI3V_API_KEY"}
    if key is not None:
        environment["PHI3V_API_KEY"] = key
    done = subprocess.run(
        command, input=program, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def text_of(language: str, output: str) -> str:
    if language != "curl":
        return output.removesuffix("\n")
    *events, done, rest = output.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)


@pytest.mark.parametrize("language", LANGUAGES)
def test_programs_run_as_copied(playground: Playground, language: str) -> None:
    """Against the server, with a picture and a follow-up: the page's answer again."""
    playground.add_sample("Two shapes")
    playground.set(system="Be brief.", seed=5, top_k=50, stop="never\nsaid", temperature=0.5)
    playground.ask(NASTY)
    answer = playground.shown(playground.ask("go on"))
    program = copied(playground, language)
    assert API_KEY not in program
    assert text_of(language, run(language, program)).split() == answer.split()


class Recorder(ThreadingHTTPServer):
    """Takes requests, keeps them, and answers with an empty stream."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), RecordingHandler)
        self.taken: list[tuple[dict[str, str], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class RecordingHandler(BaseHTTPRequestHandler):
    server: Recorder

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.taken.append((headers, json.loads(body)))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    with Recorder() as recorder:
        threading.Thread(target=recorder.serve_forever, daemon=True).start()
        yield recorder
        recorder.shutdown()


@pytest.mark.parametrize("language", LANGUAGES)
def test_programs_send_what_the_page_sent(
    playground: Playground, recorder: Recorder, language: str
) -> None:
    """Every parameter, and texts made to break quoting: the same JSON, and the key."""
    playground.add_sample("A letter")
    playground.set(**EVERYTHING)
    playground.ask(NASTY)
    playground.ask("go on")
    program = copied(playground, language).replace(playground.server.url, recorder.url)
    run(language, program)
    headers, body = recorder.taken[-1]
    assert body == playground.bodies[-1]
    assert body["messages"][0]["content"] == NASTY.strip()
    assert API_KEY in (headers.get("api-key"), headers.get("authorization", "")[7:])
    if language != "OpenAI Python":
        assert headers["extra-parameters"] == "pass-through"


def test_odd_keys_are_quoted(playground: Playground, recorder: Recorder) -> None:
    """A key is text too, also for a shell."""
    playground.ask("hello")
    odd = """it's a "$HOME" `key` \\"""
    playground.page.get_by_label("API key", exact=True).fill(odd)
    playground.refusals.append("401")
    playground.page.get_by_label("API key", exact=True).press("Tab")
    for language in ("curl", "Azure Python"):
        program = copied(playground, language, with_key=True)
        run(language, program.replace(playground.server.url, recorder.url), key=None)
        assert recorder.taken[-1][0]["api-key"] == odd


def test_without_a_key_none_is_asked_for(
    open_page: Callable[..., Playground], server: LiveServer
) -> None:
    """A server without a key: so are the programs. The page is told so by its settings."""
    made = open_page()
    limits = {"api_key_required": False, "max_output_tokens": 9, "images_per_prompt": 1}
    made.page.route("**/settings.json", lambda route: route.fulfill(json=limits))
    made.refusals.append("401")
    made.open()
    made.ask("hello")
    for language in LANGUAGES:
        assert "PHI3V_API_KEY" not in copied(made, language)
    made.page.get_by_role("button", name="Copy as code").click()
    expect(made.page.get_by_label("Include my API key")).to_be_hidden()


def test_the_picture_is_cut_short_on_the_screen_only(playground: Playground) -> None:
    playground.add_sample("A digit")
    playground.ask("which one?")
    playground.page.get_by_role("button", name="Copy as code").click()
    shown = playground.page.get_by_role("dialog").locator("pre").inner_text()
    assert len(shown) < 2000
    assert "the copied code has all of it" in playground.page.get_by_role("dialog").inner_text()
    playground.page.keyboard.press("Escape")
    url = playground.bodies[-1]["messages"][0]["content"][0]["image_url"]["url"]
    assert url in copied(playground, "curl")
