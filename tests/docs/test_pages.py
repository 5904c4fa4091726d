"""Pages lead somewhere, name what is there, and say what the program says."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from scripts import settings_page, sizing_page
from scripts.screenshot import SCREENSHOT, TRANSCRIPT, TRUTH
from server.ray.settings import RaySettings
from server.settings import Settings
from tests.support.servers.live_server import ROOT

PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("**/*.md"),
    ROOT / "examples" / "README.md",
    ROOT / "tests" / "golden" / "README.md",
]
FLAGS = {"--" + name.replace("_", "-") for name in Settings.model_fields}
# Of other commands than the server's, or of its subcommands.
OTHERS = {
    "--parts",
    "--seconds",
    "--json",
    "--picture",
    "--preset",
    "--out",
    "--text-only",
    "--vllm-python",
    "--memory",
    "--tokens",
    "--version",
    "--help",
    "--address",
}


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    return re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text("utf-8")), link


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_files_and_flags_are_there(path: Path) -> None:
    text = prose(path)
    named = re.findall(r"`((?:scripts|server|model|tests|docs|examples)/[\w./-]*\w)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    flags = set(re.findall(r"`(--[a-z][a-z-]+)", text))
    positive = {flag.replace("--no-", "--") for flag in flags}
    assert positive - FLAGS - OTHERS == set()


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\((\w[\w-]*\.md)\)", index)) == pages


def test_the_settings_page_is_the_settings() -> None:
    assert settings_page.PAGE.read_text("utf-8") == settings_page.page()


def test_the_sizing_page_is_the_memory_plan() -> None:
    assert sizing_page.PAGE.read_text("utf-8") == sizing_page.page()


def test_the_ray_page_has_rays_settings() -> None:
    page = (ROOT / "docs" / "ray.md").read_text("utf-8")
    documented = re.findall(r"^\| `PHI3V_([A-Z_]+)` \|", page, re.MULTILINE)
    own = [name for name in RaySettings.model_fields if name not in Settings.model_fields]
    assert [name.lower() for name in documented] == own


def test_the_screenshot_shows_true_answers() -> None:
    """``scripts/screenshot`` wrote both files, and checked each answer against the drawing."""
    transcript = json.loads(TRANSCRIPT.read_text("utf-8"))
    assert transcript["sha256"] == hashlib.sha256(SCREENSHOT.read_bytes()).hexdigest()
    assert transcript["conversation"] == TRUTH


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160
