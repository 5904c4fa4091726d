"""Make the README's picture of the playground: a talk with the demo model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURE = Path(__file__).parents[1] / "docs" / "playground.png"
FOLLOW_UPS = ("What colour is the circle?", "Is it left of the square?")


def take(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_role("button", name="Two shapes").click()
    page.locator("#attachment").wait_for()
    for question in (None, *FOLLOW_UPS):
        if question is not None:
            page.locator("#prompt").fill(question)
        page.get_by_role("button", name="Send").click()
        page.wait_for_timeout(500)  # the last answer's button goes
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
