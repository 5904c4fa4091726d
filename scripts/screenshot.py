"""Make the README's picture of the playground. The answer in it is scripted."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, Route, sync_playwright

PICTURE = Path(__file__).parents[1] / "docs" / "playground.png"
ANSWER = """The chart shows visitors per day:

| Day | Visitors |
|---|---|
| Mon | 120 |
| Tue | 200 |
| Wed | 160 |
| Thu | **310** |
| Fri | 230 |

**Thursday** is the busiest day.
"""
USAGE = {
    "prompt_tokens": 1965,
    "completion_tokens": 74,
    "prompt_tokens_details": {"cached_tokens": 1952},
}


def answer(route: Route) -> None:
    choice = {"index": 0, "delta": {"content": ANSWER}, "finish_reason": None}
    events = [{"choices": [choice]}, {"choices": [], "usage": USAGE}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    route.fulfill(content_type="text/event-stream", body=body)


def take(page: Page, url: str) -> None:
    page.route("**/chat/completions", answer)
    page.route("**/info", lambda route: route.fulfill(json={"model_name": "Phi-3-vision-128k"}))
    page.goto(url)
    page.get_by_role("button", name="Bar chart").click()
    page.locator("#attachment").wait_for()
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Regenerate").wait_for()
    page.mouse.move(0, 0)
    PICTURE.parent.mkdir(exist_ok=True)
    page.screenshot(path=PICTURE)


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox"]
        )
        take(browser.new_page(viewport={"width": 1180, "height": 960}), url)
        browser.close()
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
