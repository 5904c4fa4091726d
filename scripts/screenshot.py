"""Take the README's screenshot of the playground: a conversation with the demo model.

Checks every answer and stops at a wrong one. Records the conversation in docs/playground.json.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SCREENSHOT = Path(__file__).parents[1] / "docs" / "playground.png"
TRANSCRIPT = SCREENSHOT.with_suffix(".json")
SAMPLE = "Two shapes"  # a red circle left of a blue square
TRUTH = {
    "Describe the picture.": "The picture shows a red circle and a blue square.",
    "Is the circle left of the square?": "Yes, the circle is left of the square.",
    "How many shapes are blue?": "There is 1 blue shape.",
}


def take(page: Page, url: str) -> None:
    page.goto(url)
    page.locator("#panel").wait_for()  # open in a wide window
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name=SAMPLE).click()
    page.locator("#attachment").wait_for()
    for number, question in enumerate(TRUTH, 1):
        page.locator("#prompt").fill(question)
        page.get_by_role("button", name="Send").click()
        page.locator(".answer .figures:visible").nth(number - 1).wait_for()
    answers = page.locator(".answer .markdown").all_inner_texts()
    found = dict(zip(TRUTH, (answer.strip() for answer in answers), strict=True))
    if found != TRUTH:
        raise SystemExit(f"screenshot: wrong answers: {json.dumps(found, indent=2)}")
    page.mouse.move(0, 0)
    SCREENSHOT.parent.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOT)
    digest = hashlib.sha256(SCREENSHOT.read_bytes()).hexdigest()
    transcript = {"sha256": digest, "conversation": found}
    TRANSCRIPT.write_text(json.dumps(transcript, indent=2) + "\n", "utf-8")


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox"]
        )
        take(browser.new_page(viewport={"width": 1180, "height": 960}), url)
        browser.close()
    print(f"wrote {SCREENSHOT} and {TRANSCRIPT}")


if __name__ == "__main__":
    main()
