"""The README's samples run as they stand, and its table of settings is the program's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from server.ray.settings import RaySettings
from server.settings import Settings
from tests.support.client_environments import node_directory, python_with
from tests.support.live_server import ROOT, LiveServer, start_server

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
CURL = [code for language, code in BLOCKS if language == "bash" and "curl" in code]
PYTHON = [code for language, code in BLOCKS if language == "python"]
JAVASCRIPT = [code for language, code in BLOCKS if language == "javascript"]
ADDRESS = "http://127.0.0.1:8000"
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def open_server(tiny: Path) -> Iterator[LiveServer]:
    live = start_server("--model", str(tiny))
    yield live
    assert live.stop() == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the image that the samples read."""
    Image.new("RGB", (300, 200), "green").save(tmp_path / "image.jpg")
    return tmp_path


def run(command: list[str | Path], folder: Path, given: str | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # or it looks for one online
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_samples_are_found() -> None:
    assert (len(CURL), len(PYTHON), len(JAVASCRIPT)) == (4, 9, 1)


@needs_curl
@pytest.mark.parametrize("code", CURL)
def test_curl(code: str, open_server: LiveServer, folder: Path) -> None:
    output = run(["bash", "-c", code.replace(ADDRESS, open_server.url)], folder)
    if "/info" in code:
        assert '"model_type":"chat-completions"' in output
    elif "stream" in code:
        assert output.endswith("data: [DONE]\n\n")
    else:
        assert '"object":"chat.completion"' in output


@needs_curl
def test_curl_shows_errors(open_server: LiveServer, server: LiveServer, folder: Path) -> None:
    (code,) = (code for code in CURL if '"temperature": 0' in code)
    hot = code.replace('"temperature": 0', '"temperature": 9')
    assert '"status":422' in run(["bash", "-c", hot.replace(ADDRESS, open_server.url)], folder)
    assert '"status":401' in run(["bash", "-c", code.replace(ADDRESS, server.url)], folder)


@pytest.mark.timeout(600)  # the first sample of a framework installs it
@pytest.mark.parametrize("code", PYTHON)
def test_python(code: str, open_server: LiveServer, folder: Path) -> None:
    framework = re.search(r"^from (langchain|litellm|llama_index)", code, re.MULTILINE)
    python = python_with("frameworks") if framework else Path(sys.executable)
    assert run([python, "-c", code.replace(ADDRESS, open_server.url)], folder).strip()


@pytest.mark.parametrize("code", JAVASCRIPT)
def test_javascript(code: str, open_server: LiveServer) -> None:
    command: list[str | Path] = ["node", "--input-type=module"]
    assert run(command, node_directory(), code.replace(ADDRESS, open_server.url)).strip()


def test_every_client_of_the_table_has_a_sample() -> None:
    (table,) = re.findall(r"### Works with\n\n(.*?)\n\n", README, re.DOTALL)
    rows = re.findall(r"^\| \[(.+?)\]\(#(.+?)\)", table, re.MULTILINE)
    assert len(rows) == table.count("\n") - 1  # all but the head
    for title, anchor in rows:
        assert anchor == title.lower().replace(",", "").replace(" ", "-")
        (section,) = re.findall(rf"^### {title}\n(.*?)^##", README, re.DOTALL | re.MULTILINE)
        assert "```" in section
        assert ADDRESS in section


def test_settings_table() -> None:
    documented = re.findall(r"^\| `--([a-z-]+)` \|", README, re.MULTILINE)
    assert sorted(documented) == sorted(name.replace("_", "-") for name in Settings.model_fields)


def test_ray_settings_table() -> None:
    documented = re.findall(r"^\| `PHI3V_([A-Z_]+)` \|", README, re.MULTILINE)
    own = [name for name in RaySettings.model_fields if name not in Settings.model_fields]
    assert [name.lower() for name in documented] == own


def test_file_tree_names_what_is_there() -> None:
    (tree,) = [
        code for language, code in BLOCKS if language == "text" and code.startswith("server/")
    ]
    for name in ("server", "model", "scripts", "tests"):
        assert f"{name}/" in tree
        assert (ROOT / name).is_dir()
    scripts = re.search(r"scripts/ +(.*)", tree)
    assert scripts is not None
    for name in scripts[1].split(", "):
        assert (ROOT / "scripts" / name).exists()
