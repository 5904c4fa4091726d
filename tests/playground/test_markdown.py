"""Markdown on the playground: the nodes made of it, and that no text makes it slow or flicker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.playground.page import browser
from tests.support.servers.live_server import LiveServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser"]

MARKDOWN = {
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# A *b*\n###### c": "<h3>A <em>b</em></h3><h6>c</h6>",
    "**a *b* c** __d__ _e_ ~~f~~ ***g***": "<p><strong>a <em>b</em> c</strong> <strong>d</strong> "
    "<em>e</em> <del>f</del> <strong><em>g</em></strong></p>",
    "snake_case_name 2 * 3 * 4 **open": "<p>snake_case_name 2 * 3 * 4 **open</p>",
    "`a*b*` `` c`d `` \\*e\\*": "<p><code>a*b*</code> <code>c`d</code> *e*</p>",
    "```py\nx = 1\n\n# y\n```\nz": '<pre tabindex="0" data-language="py"><code>x = 1\n\n# y</code>'
    "</pre><p>z</p>",
    "```\nopen": '<pre tabindex="0"><code>open</code></pre>',
    "- a\n- b\n  - c\n\n  d\n- e": "<ul><li>a</li><li><p>b</p><ul><li>c</li></ul><p>d</p></li>"
    "<li>e</li></ul>",
    "3. a\n4. b\n\ntext": '<ol start="3"><li>a</li><li>b</li></ol><p>text</p>',
    "> a\n> - b\n\n---": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote><hr>",
    "| a | b |\n|:--|--:|\n| 1 | **2** |\nend": '<div tabindex="0" role="region" aria-label="Table">'
    "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><strong>2</strong>"
    "</td></tr></tbody></table></div><p>end</p>",
    "[a](https://b.example/c_(d)) (https://e.example).": '<p><a href="https://b.example/c_(d)">a</a> '
    '(<a href="https://e.example/">https://e.example</a>).</p>',
}


SHOW = """async (texts) => {
    const { showMarkdown } = await import("/playground/markdown.js");
    const element = document.createElement("div");
    const start = performance.now();
    const nodes = texts.map((text) => (showMarkdown(element, text), [...element.children]));
    return %s;
}"""


@pytest.fixture(scope="module")
def page(browser: Browser, server: LiveServer) -> Iterator[Page]:
    """A page of the playground's origin, for its modules."""
    page = browser.new_page()
    page.goto(server.url + "/")
    yield page
    page.close()


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown(page: Page, text: str) -> None:
    """The same nodes from a text at once and grown letter by letter."""
    grown = [text[:end] for end in range(1, len(text) + 1)]
    for texts in ([text], grown):
        html = page.evaluate(SHOW % "element.innerHTML", texts)
        html = html.replace(' target="_blank" rel="noopener noreferrer"', "")
        assert html.replace('class="table" ', "") == MARKDOWN[text]


def test_growing_text_keeps_what_stands(page: Page) -> None:
    """Finished blocks stay the same nodes: nothing flickers, and selections last."""
    kept = "nodes[1].map((node, i) => node === nodes[0][i])"
    texts = ["# one\n\ntwo\n\nthr", "# one\n\ntwo\n\nthree\n\n- four"]
    assert page.evaluate(SHOW % kept, texts) == [True, True, False, False]


UNITS = [
    *(
        "*",
        "**a ",
        "*a ",
        "_a*",
        "[",
        "[a](",
        "`",
        "<",
        "~~a",
        "- ",
        "> ",
        "|a",
        "# ",
        "\n- a\n",
        " ",
    ),
    *(
        "``` ",
        "1. a\n  ",
        "| a | b |\n|-|-|\n",
        "\\",
        "http://a ",
        "> - ",
        "a|\n",
        "*_",
        "- x\n",
        "> x\n",
    ),
]


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_stalls_the_page(page: Page, unit: str) -> None:
    """Twice as long as the longest answer, of anything that repeats: milliseconds to show it."""
    text = unit * (120_000 // len(unit))
    assert page.evaluate(SHOW % "performance.now() - start", [text]) < 5000
