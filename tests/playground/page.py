"""The playground in a real browser, as tests use it: a page of its own for each, and its complaints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.programs import program, without
from tests.support.servers.live_server import LiveServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
REFUSED = "Failed to load resource: the server responded with a status of "


class Playground:
    """The page, what it sent, and what went wrong in it.

    Attributes:
        bodies: of the chat completions it asked for.
        problems: what its console and its scripts complained of, and requests to elsewhere.
        refusals: answers of the server that the test expects, as ``"422"``; a browser's console
            names every one of them.
    """

    def __init__(self, page: Page, server: LiveServer) -> None:
        self.page = page
        self.server = server
        self.bodies: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.refusals: list[str] = []
        page.set_default_timeout(60_000)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._on_request)

    def open(self, key: str | None = None) -> None:
        """Load the page; the key, if one is given, is typed in."""
        self.page.goto(self.server.url + "/")
        if key is not None:
            self.page.get_by_label("API key", exact=True).fill(key)
            self.page.get_by_label("API key", exact=True).press("Tab")
            self.page.locator("#connection", has_text="phi3v-tiny").wait_for()

    def set(self, **fields: object) -> None:
        """Fill in settings, by the API's names."""
        self.page.locator("#settings summary").evaluate("(more) => (more.parentNode.open = true)")
        for name, value in fields.items():
            field = self.page.locator(f"#settings [name={name}]")
            if isinstance(value, bool):
                field.set_checked(value)
            elif name == "detail":
                field.select_option(str(value))
            else:
                field.fill(str(value))

    def add_sample(self, name: str) -> None:
        """Click one of the sample pictures."""
        self.page.get_by_role("button", name=name).click()
        self.page.locator("#attachment").get_by_text("640 × 480").wait_for()

    def ask(self, text: str) -> Locator:
        """Send a message; the turn when it is over."""
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.get_by_role("button", name="Send").click()
        return self.finished()

    def ask_scripted(self, answer: str) -> Locator:
        """A turn with an answer that no real model would give on demand, in pieces."""
        step = len(answer) // 7 + 1
        pieces = [answer[start : start + step] for start in range(0, len(answer), step)]
        deltas = [{"index": 0, "delta": {"content": piece}} for piece in pieces]
        events = [f"data: {json.dumps({'choices': [delta]})}\n\n" for delta in deltas]
        body = "".join(events) + "data: [DONE]\n\n"
        self.page.route(
            "**/chat/completions",
            lambda route: route.fulfill(content_type="text/event-stream", body=body),
        )
        turn = self.ask("hello")
        self.page.unroute("**/chat/completions")
        return turn

    def finished(self) -> Locator:
        """The last turn, when it is over."""
        turn = self.page.locator(".turn").last
        turn.locator(".actions").wait_for()
        return turn

    def shown(self, turn: Locator) -> str:
        """The answer as Markdown shows it."""
        return turn.locator(".markdown").inner_text()

    def _on_console(self, message: Any) -> None:
        expected = any(message.text.startswith(REFUSED + status) for status in self.refusals)
        if message.type in ("error", "warning") and not expected:
            self.problems.append(message.text)

    def _on_request(self, request: Any) -> None:
        if request.url.endswith("/chat/completions"):
            self.bodies.append(request.post_data_json)
        if not request.url.startswith((self.server.url + "/", "data:", f"blob:{self.server.url}/")):
            self.problems.append(f"asked for {request.url}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. It ends with its module: its event loop would be in other tests' way."""
    chromium = program("chromium", "google-chrome")
    if chromium.startswith("/snap/"):
        without("chromium is a snap, which sees no profile under /tmp")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # a page may be slow on a busy machine

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Browser, server: LiveServer) -> Iterator[Callable[..., Playground]]:
    """Opens pages in fresh profiles; fails if one complains of anything."""
    opened: list[Playground] = []

    def make(live: LiveServer = server, **options: Any) -> Playground:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        opened.append(Playground(context.new_page(), live))
        return opened[-1]

    yield make
    for playground in opened:
        playground.page.context.close()
    assert [playground.problems for playground in opened] == [[] for _ in opened]


@pytest.fixture
def playground(open_page: Callable[..., Playground], server: LiveServer) -> Playground:
    """The page with its key, short greedy answers, and nothing said yet."""
    made = open_page()
    made.open(server.key)
    made.set(temperature=0, ignore_eos=True, max_tokens=12)
    return made
