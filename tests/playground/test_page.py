"""A conversation on the playground: streams, follow-ups, stopping, errors, the keyboard."""

from __future__ import annotations

import re

import httpx2
from playwright.sync_api import expect

from tests.playground.page import Playground, browser, open_page, playground
from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.waiting import eventually

__all__ = ["browser", "open_page", "playground"]

HEADERS = {"api-key": API_KEY, "extra-parameters": "pass-through"}


def running(server: LiveServer) -> float:
    metrics = httpx2.get(f"{server.url}/metrics", headers=HEADERS).text
    found = re.search(r"^phi3v_num_requests_running (\S+)", metrics, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_an_answer_and_its_figures(playground: Playground, server: LiveServer) -> None:
    """The page shows what the API says: the same text, the same numbers of tokens."""
    playground.set(system="Be brief.")
    turn = playground.ask("hello")
    (body,) = playground.bodies
    assert body == {
        "model": "phi3v-tiny",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
        ],
        "temperature": 0,
        "max_tokens": 12,
        "ignore_eos": True,
        "stream": True,
    }
    answer = httpx2.post(
        f"{server.url}/chat/completions", json={**body, "stream": False}, headers=HEADERS
    ).json()
    text = answer["choices"][0]["message"]["content"]
    assert playground.shown(turn).split() == text.split()
    figures = turn.locator(".figures").inner_text()
    assert re.search(rf"\b{answer['usage']['prompt_tokens']}\s+in", figures)
    assert re.search(r"\b12\s+out", figures)
    assert re.search(r"\d\.\d\d s\s+to the first token", figures)
    assert re.search(r"\d\s+tokens/s", figures)
    assert "cut off at max tokens" in figures
    announced = playground.page.locator("#announcement").inner_text()
    assert announced.split() == f"The model says: {text}".split()


def test_text_appears_while_it_streams(playground: Playground) -> None:
    playground.set(max_tokens=200)
    playground.page.get_by_label("Message", exact=True).fill("hello")
    playground.page.keyboard.press("Enter")
    state = """[!document.querySelector("#stop").hidden, document.querySelector(".markdown")
        .innerText.length, document.querySelector("#announcement").textContent]"""
    lengths = set()
    while (seen := playground.page.evaluate(state))[0]:
        lengths.add(seen[1])
        assert seen[2] == ""  # a screen reader hears the whole answer, once
    assert len(lengths) > 3


def test_follow_ups_and_regenerate(playground: Playground) -> None:
    first = playground.shown(playground.ask("one"))
    playground.set(seed=7, temperature=1)
    playground.ask("two")
    one, two = playground.bodies
    said = two["messages"][1].pop("content")
    assert said.split() == first.split()
    assert two["messages"] == [
        *one["messages"],
        {"role": "assistant"},
        {"role": "user", "content": "two"},
    ]
    before = playground.shown(playground.finished())
    playground.set(seed=8)
    playground.page.get_by_role("button", name="Regenerate").click()
    assert playground.shown(playground.finished()) != before
    again = playground.bodies[-1]
    assert again["messages"][-1] == {"role": "user", "content": "two"}
    assert (len(again["messages"]), again["seed"]) == (3, 8)
    expect(playground.page.locator(".turn")).to_have_count(2)
    # Of a prompt that was computed before, the page says how much.
    playground.ask("two " * 80)
    playground.page.get_by_role("button", name="Regenerate").click()
    assert re.search(r"in, \d+ cached", playground.finished().inner_text())
    playground.page.get_by_role("button", name="New chat").click()
    expect(playground.page.locator(".turn")).to_have_count(0)
    playground.ask("three")
    assert playground.bodies[-1]["messages"] == [{"role": "user", "content": "three"}]


def test_stop_ends_the_work_on_the_server(playground: Playground, server: LiveServer) -> None:
    eventually(lambda: running(server) == 0)
    playground.set(max_tokens=7000)
    playground.page.get_by_label("Message", exact=True).fill("hello")
    playground.page.get_by_role("button", name="Send").click()
    playground.page.locator(".markdown > *").first.wait_for()
    assert running(server) == 1
    playground.page.get_by_role("button", name="Stop").click()
    eventually(lambda: running(server) == 0)
    turn = playground.finished()
    kept = playground.shown(turn)
    assert kept
    assert "stopped" in turn.locator(".figures").inner_text()
    # What was said so far is part of the conversation.
    playground.set(max_tokens=5)
    playground.ask("go on")
    assert playground.bodies[-1]["messages"][1]["role"] == "assistant"
    assert playground.bodies[-1]["messages"][1]["content"].split() == kept.split()


def test_errors_are_the_servers_words(playground: Playground) -> None:
    playground.refusals.append("422")
    playground.set(temperature="warm", min_p=3)
    turn = playground.ask("hello")
    failure = turn.get_by_role("alert").inner_text()
    assert "temperature: Input should be a valid number" in failure
    assert "min_p: Input should be less than or equal to 1" in failure
    assert "422 invalid_parameter" in failure
    assert playground.page.locator("[name=temperature]").get_attribute("aria-invalid") == "true"
    # A question that failed is no part of the conversation, but can be asked again.
    playground.set(temperature=0, min_p="")
    assert playground.page.locator("[name=temperature]").get_attribute("aria-invalid") is None
    playground.ask("another")
    assert playground.bodies[-1]["messages"] == [{"role": "user", "content": "another"}]
    playground.set(top_p=2)
    assert "top_p" in playground.ask("third").get_by_role("alert").inner_text()
    playground.set(top_p="")
    playground.page.get_by_role("button", name="Try again").click()
    assert playground.shown(playground.finished())
    expect(playground.page.get_by_role("alert").filter(visible=True)).to_have_count(1)


def test_large_numbers_are_sent_as_they_are_written(playground: Playground) -> None:
    playground.set(seed="9007199254740993")  # no JavaScript number
    assert playground.shown(playground.ask("hello"))
    assert playground.bodies[-1]["seed"] == "9007199254740993"


def test_a_broken_connection_is_told(playground: Playground) -> None:
    chunk = '{"choices": [{"index": 0, "delta": {"content": "Half an"}, "finish_reason": null}]}'
    playground.page.route(
        "**/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body=f"data: {chunk}\n\n"),
    )
    turn = playground.ask("hello")
    assert "closed before the answer was complete" in turn.get_by_role("alert").inner_text()
    assert playground.shown(turn) == "Half an"
    playground.page.unroute("**/chat/completions")
    playground.page.route("**/chat/completions", lambda route: route.abort())
    playground.problems.clear()
    turn = playground.ask("hello")
    assert "Cannot reach the server" in turn.get_by_role("alert").inner_text()
    assert all("ERR_FAILED" in problem for problem in playground.problems)
    playground.problems.clear()


def test_the_end_comes_into_view_unless_the_reader_scrolled_back(playground: Playground) -> None:
    playground.page.set_viewport_size({"width": 1280, "height": 500})
    playground.set(max_tokens=100)
    in_view = """(element) => {
        const { bottom } = element.getBoundingClientRect();
        return bottom > 0 && bottom < document.querySelector("#composer").offsetTop;
    }"""
    for _ in range(2):
        turn = playground.ask("hello")
        assert turn.get_by_role("button", name="Regenerate").evaluate(in_view)
    playground.set(max_tokens=300)
    playground.page.get_by_label("Message", exact=True).fill("and now?")
    playground.page.get_by_role("button", name="Send").click()
    playground.page.locator(".turn").last.locator(".markdown > *").first.wait_for()
    playground.page.get_by_label("Conversation").evaluate("(log) => (log.scrollTop = 0)")
    turn = playground.finished()
    assert not turn.get_by_role("button", name="Regenerate").evaluate(in_view)


def test_probabilities_by_pointer_and_keyboard(playground: Playground) -> None:
    playground.set(logprobs=True, top_logprobs=3)
    turn = playground.ask("hello")
    assert (playground.bodies[0]["logprobs"], playground.bodies[0]["top_logprobs"]) == (True, 3)
    tokens = turn.get_by_role("option")
    expect(tokens).to_have_count(12)
    tip = playground.page.get_by_role("tooltip")
    tokens.nth(4).hover()
    expect(tip.get_by_role("listitem")).to_have_count(3)
    assert re.search(r"\d%", tip.inner_text())
    playground.page.mouse.move(0, 0)
    expect(tip).to_be_hidden()
    # One stop of the Tab key, then arrows.
    tokens.first.focus()
    playground.page.keyboard.press("ArrowRight")
    playground.page.keyboard.press("ArrowRight")
    third = tokens.nth(2)
    assert third.evaluate("(token) => token === document.activeElement")
    expect(tip).to_be_visible()
    chosen = tip.locator(".chosen").inner_text()
    assert chosen.split()[-1] in str(third.get_attribute("aria-label"))
    playground.page.keyboard.press("End")
    assert tokens.nth(11).get_attribute("aria-selected") == "true"
    turn.get_by_role("button", name="Tokens").click()
    expect(turn.locator(".markdown")).to_be_visible()
    expect(turn.locator(".tokens")).to_be_hidden()


def test_everything_by_keyboard(playground: Playground, server: LiveServer) -> None:
    page = playground.page
    page.get_by_role("button", name="New chat").press("Enter")
    page.keyboard.type("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second")
    playground.set(max_tokens=7000)
    page.get_by_label("Message", exact=True).press("Enter")
    page.locator(".markdown > *").first.wait_for()
    assert playground.bodies[0]["messages"][0]["content"] == "first\nsecond"
    page.keyboard.press("Escape")
    assert "stopped" in playground.finished().inner_text()
    # Every control is reached, in order, and none is a trap.
    page.get_by_role("link", name="Skip").focus()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.textContent || document.activeElement.name")
        reached.append(name.strip().split("\n")[0])
        if reached[-1] == "detail":
            break
    for name in ("New chat", "Dark", "Settings", "Copy as code", "Regenerate", "Send", "api_key"):
        assert name in reached
    page.get_by_role("button", name="Copy as code").press("Enter")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert page.evaluate("document.activeElement.textContent") == "Copy as code"
