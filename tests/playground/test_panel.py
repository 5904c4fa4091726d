"""Beside the conversation: the connection and its key, and the theme."""

from __future__ import annotations

from collections.abc import Callable

from tests.playground.page import Playground, browser, open_page
from tests.support.servers.live_server import LiveServer

__all__ = ["browser", "open_page"]


def test_a_model_that_loads_is_waited_for(
    open_page: Callable[..., Playground], server: LiveServer
) -> None:
    made = open_page()
    made.refusals.append("503")
    error = {"error": {"code": "overloaded", "message": "the model is still loading"}}
    made.page.route("**/info", lambda route: route.fulfill(status=503, json=error), times=1)
    made.page.add_init_script(f"sessionStorage.setItem('phi3v-api-key', '{server.key}')")
    made.open()
    made.page.get_by_text("the model is still loading").wait_for()
    made.page.locator("#connection", has_text="phi3v-tiny").wait_for()


def test_the_key_is_asked_for_and_kept_in_the_tab(
    open_page: Callable[..., Playground], server: LiveServer
) -> None:
    made = open_page()
    made.refusals.append("401")
    made.open()  # the page itself needs none
    made.page.get_by_text("API key required").wait_for()
    key = made.page.get_by_label("API key", exact=True)
    key.fill("wrong")
    key.press("Tab")
    made.page.locator("#connection", has_text="the API key is missing or wrong").wait_for()
    assert "401 Unauthorized" in made.ask("hello").get_by_role("alert").inner_text()
    assert key.evaluate("(field) => field === document.activeElement")
    key.fill(server.key)
    made.set(max_tokens=3)
    made.page.get_by_role("button", name="Try again").click()
    assert "out" in made.finished().inner_text()
    made.page.reload()
    made.page.locator("#connection", has_text="phi3v-tiny").wait_for()
    stored = made.page.evaluate("[Object.values(sessionStorage), Object.values(localStorage)]")
    assert stored == [[server.key], []]
    assert made.page.context.cookies() == []
    other = made.page.context.new_page()
    other.goto(server.url + "/")
    other.get_by_text("API key required").wait_for()
    assert other.get_by_label("API key", exact=True).input_value() == ""


def test_the_theme_is_the_systems_until_chosen(open_page: Callable[..., Playground]) -> None:
    made = open_page(color_scheme="dark")
    made.open()
    background = "getComputedStyle(document.body).backgroundColor"
    dark = made.page.evaluate(background)
    toggle = made.page.get_by_role("button", name="Dark")
    assert toggle.get_attribute("aria-pressed") == "true"
    toggle.click()
    light = made.page.evaluate(background)
    assert light != dark
    made.page.reload()
    assert made.page.evaluate(background) == light
    assert toggle.get_attribute("aria-pressed") == "false"
