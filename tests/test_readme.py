"""The README's samples run as they stand, and its table of settings is the program's own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from client_environments import node_directory
from live_server import ROOT, LiveServer, start_server
from server.settings import Settings

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
CURL = [code for language, code in BLOCKS if language == "bash" and "curl" in code]
PYTHON = [code for language, code in BLOCKS if language == "python"]
JAVASCRIPT = [code for language, code in BLOCKS if language == "javascript"]
ADDRESS = "http://127.0.0.1:8000"


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


def run(command: list[str], folder: Path, given: str | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, input=given, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_samples_are_found() -> None:
    assert (len(CURL), len(PYTHON), len(JAVASCRIPT)) == (4, 2, 1)


@pytest.mark.parametrize("code", CURL)
def test_curl(code: str, open_server: LiveServer, folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    output = run(["bash", "-c", code.replace(ADDRESS, open_server.url)], folder)
    if "/info" in code:
        assert '"model_type":"chat-completions"' in output
    elif "stream" in code:
        assert output.endswith("data: [DONE]\n\n")
    else:
        assert '"object":"chat.completion"' in output


@pytest.mark.parametrize("code", PYTHON)
def test_python(code: str, open_server: LiveServer, folder: Path) -> None:
    assert run([sys.executable, "-c", code.replace(ADDRESS, open_server.url)], folder).strip()


@pytest.mark.parametrize("code", JAVASCRIPT)
def test_javascript(code: str, open_server: LiveServer) -> None:
    command = ["node", "--input-type=module"]
    assert run(command, node_directory(), code.replace(ADDRESS, open_server.url)).strip()


def test_settings_table() -> None:
    documented = re.findall(r"^\| `--([a-z-]+)` \|", README, re.MULTILINE)
    assert documented == [name.replace("_", "-") for name in Settings.model_fields]


def test_file_tree_names_what_is_there() -> None:
    (tree,) = [code for language, code in BLOCKS if language == "text"]
    for name in ("server", "model", "scripts", "tests"):
        assert f"{name}/" in tree
        assert (ROOT / name).is_dir()
    scripts = re.search(r"scripts/ +(.*)", tree)
    assert scripts is not None
    for name in scripts[1].split(", "):
        assert (ROOT / "scripts" / name).exists()
