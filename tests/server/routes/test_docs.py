"""The page at /docs in a real browser: all operations, and nothing that its policy forbids."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
from playwright.sync_api import expect

from tests.playground.page import Playground, browser, open_page
from tests.support.servers.live_server import LiveServer

__all__ = ["browser", "open_page"]


def test_its_operations_are_shown_and_can_be_tried(
    open_page: Callable[..., Playground], server: LiveServer
) -> None:
    """The fixture fails at what the console says, as of a violated policy."""
    page = open_page().page
    page.goto(f"{server.url}/docs")
    paths = httpx2.get(f"{server.url}/openapi.json").json()["paths"]
    operations = sum(len(methods) for methods in paths.values())
    expect(page.locator(".opblock")).to_have_count(operations)
    page.locator(".opblock", has_text="/health/live").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    page.locator(".opblock-summary", has_text="/v1/chat/completions").first.click()
    expect(page.locator(".opblock.is-open", has_text="application/json")).to_have_count(2)


def test_headers(server: LiveServer) -> None:
    page, own = httpx2.get(f"{server.url}/docs"), httpx2.get(server.url)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self' 'sha256-" in policy
    assert "unsafe" not in policy
    for name in ("x-content-type-options", "referrer-policy", "cross-origin-opener-policy"):
        assert page.headers[name] == own.headers[name]
