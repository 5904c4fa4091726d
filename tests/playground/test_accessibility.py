"""axe, on the playground in each of its states: light and dark, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.playground.page import Playground, browser, open_page
from tests.support.servers.live_server import LiveServer

__all__ = ["browser", "open_page"]

EVERY_BLOCK = """# A heading

Text with *emphasis*, `code` and [a link](https://example.org).

- a list

> a quote

```python
x = 1
```

| a | b |
|---|---|
| 1 | 2 |
"""


@pytest.mark.parametrize(("scheme", "size"), [("light", (1280, 800)), ("dark", (390, 844))])
def test_accessibility(
    open_page: Callable[..., Playground], server: LiveServer, scheme: str, size: tuple[int, int]
) -> None:
    """axe finds nothing, in every state of the page."""
    from axe_playwright_python.sync_playwright import Axe

    viewport = {"width": size[0], "height": size[1]}
    made = open_page(color_scheme=scheme, viewport=viewport, reduced_motion="reduce")
    made.page.add_init_script(f"sessionStorage.setItem('phi3v-api-key', '{server.key}')")
    made.open()

    def check(state: str) -> None:
        results = Axe().run(made.page).response
        assert results["passes"]
        found = [
            (rule["id"], node["html"]) for rule in results["violations"] for node in rule["nodes"]
        ]
        assert not found, state

    check("welcome")
    toggle = made.page.get_by_role("button", name="Settings")
    if size[0] < 900:
        toggle.click()
        check("settings alone")
    made.set(logprobs=True, max_tokens=20, temperature=0, ignore_eos=True)
    if size[0] < 900:
        toggle.click()
    made.page.get_by_role("button", name="Two shapes").click()
    made.page.locator("#attachment").wait_for()
    check("picture")
    made.ask("what is this?").get_by_role("option").nth(3).focus()
    check("tokens")
    made.page.locator("#settings [name=logprobs]").evaluate("(box) => (box.checked = false)")
    made.ask_scripted(EVERY_BLOCK)
    check("markdown")
    made.refusals.append("422")
    made.page.locator("#settings [name=top_p]").evaluate("(field) => (field.value = 'x')")
    made.ask("hello")
    check("error")
    made.page.get_by_role("button", name="Copy as code").last.click()
    check("code")
    width = made.page.evaluate("document.documentElement.scrollWidth")
    assert width == size[0]  # nothing to scroll sideways
