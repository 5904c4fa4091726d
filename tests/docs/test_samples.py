"""Every sample in the README, the docs and the examples runs as it stands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from tests.support.client_environments import CLIENTS, node_directory, python_with
from tests.support.programs import program
from tests.support.servers.live_server import ROOT, LiveServer, start_server

ADDRESS = "http://127.0.0.1:8000"
EXAMPLES = ROOT / "examples"
CIRCLE = "The circle is red."
# The environment of a sample that imports one of these; others run in the project's own.
FRAMEWORKS = {
    **dict.fromkeys(("langchain_openai", "langchain_azure_ai", "litellm"), "frameworks"),
    **dict.fromkeys(("llama_index", "azure.ai.projects"), "frameworks"),
    **dict.fromkeys(("agent_framework", "agents", "pydantic_ai"), "agents"),
    "instructor": "instructor",
}
BOTH = "The picture shows a red circle and a blue square."
PRINTED = {
    "azure_chat.py": BOTH,
    "openai_chat.py": "Yes, the circle is left of the square.",
    "describe_picture.py": BOTH,
    "structured_output.py": "red circle\nblue square",
    "forced_call.py": "blue square",
}


class Sample(NamedTuple):
    """A block of code in a page."""

    page: str
    language: str
    code: str


def samples() -> Iterator[Sample]:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for language, code in re.findall(r"```(\w+)\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
            yield Sample(path.relative_to(ROOT).as_posix(), language, code)


def in_language(language: str) -> list[Sample]:
    return [sample for sample in samples() if sample.language == language]


def parameters(chosen: list[Sample]) -> list[object]:
    return [pytest.param(s, id=f"{s.page}-{number}") for number, s in enumerate(chosen)]


def section(title: str) -> list[str]:
    """The blocks of code below a title of the clients' page."""
    page = (ROOT / "docs" / "clients.md").read_text("utf-8")
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    return re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)


CURL = [sample for sample in in_language("bash") if "curl" in sample.code]
PYTHON = in_language("python")


@pytest.fixture(scope="module")
def demo() -> Iterator[LiveServer]:
    live = start_server("--dtype", "float32")
    yield live
    assert live.stop() == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that samples read."""
    Image.new("RGB", (300, 200), "green").save(tmp_path / "image.jpg")
    (tmp_path / "examples").symlink_to(EXAMPLES)
    return tmp_path


def run(command: list[str | Path], folder: Path, given: str | None = None, **more: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
        # Or LiteLLM looks for prices online.
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", **more},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_samples_are_found() -> None:
    """Each block of code in a language that is run, but for shell lines that need more than a server."""
    assert (len(CURL), len(PYTHON), len(in_language("javascript"))) == (5, 17, 1)


@pytest.mark.parametrize("sample", parameters(CURL))
def test_curl(sample: Sample, demo: LiveServer, folder: Path) -> None:
    program("curl")
    output = run(["bash", "-c", sample.code.replace(ADDRESS, demo.url)], folder)
    if "/info" in sample.code:
        assert '"model_type":"chat-completions"' in output
    elif "stream" in sample.code:
        assert output.endswith("data: [DONE]\n\n")
    else:
        assert '"object":"chat.completion"' in output
    if "examples/" in sample.code:
        assert BOTH in output


def test_curl_shows_errors(demo: LiveServer, server: LiveServer, folder: Path) -> None:
    program("curl")
    (sample,) = (sample for sample in CURL if '"temperature": 0,\n' in sample.code)
    hot = sample.code.replace('"temperature": 0', '"temperature": 9')
    assert '"status":422' in run(["bash", "-c", hot.replace(ADDRESS, demo.url)], folder)
    assert '"status":401' in run(["bash", "-c", sample.code.replace(ADDRESS, server.url)], folder)


@pytest.mark.timeout(600)  # the first sample of a framework installs it
@pytest.mark.parametrize("sample", parameters(PYTHON))
def test_python(sample: Sample, demo: LiveServer, folder: Path) -> None:
    names = "|".join(map(re.escape, FRAMEWORKS))
    found = re.search(rf"^(?:from|import) ({names})\b", sample.code, re.MULTILINE)
    python = python_with(FRAMEWORKS[found[1]]) if found else Path(sys.executable)
    output = run([python, "-c", sample.code.replace(ADDRESS, demo.url)], folder).strip()
    assert output == CIRCLE if sample.page == "README.md" else output


@pytest.mark.parametrize("sample", parameters(in_language("javascript")))
def test_javascript(sample: Sample, demo: LiveServer) -> None:
    command: list[str | Path] = ["node", "--input-type=module"]
    assert run(command, node_directory(), sample.code.replace(ADDRESS, demo.url)).strip()


@pytest.mark.timeout(600)  # the first sample of an environment installs it
def test_llm(demo: LiveServer, folder: Path) -> None:
    models, command = section("llm")
    (folder / "extra-openai-models.yaml").write_text(models.replace(ADDRESS, demo.url), "utf-8")
    name, *arguments = shlex.split(command)
    llm: list[str | Path] = [python_with("agents"), "-m", name, *arguments]
    assert json.loads(run(llm, folder, LLM_USER_PATH=str(folder))).keys() == {"circle", "square"}


@pytest.mark.parametrize("name", [path.name for path in sorted(EXAMPLES.glob("*.py"))])
def test_example(name: str, demo: LiveServer) -> None:
    printed = run([sys.executable, name], EXAMPLES, PHI3V_ENDPOINT=demo.url)
    assert PRINTED[name] in printed


def test_example_batch(tmp_path: Path) -> None:
    installed = Path(sys.executable).with_name("phi3v-server")
    answers = tmp_path / "out.jsonl"
    run([installed, "batch", EXAMPLES / "batch.jsonl", answers], ROOT)
    text = answers.read_text("utf-8")
    assert text.count('"status_code": 200') + text.count('"status_code":200') == 4
    assert CIRCLE in text
    assert BOTH in text


def test_examples_are_listed() -> None:
    index = (EXAMPLES / "README.md").read_text("utf-8")
    for path in EXAMPLES.iterdir():
        assert path.name == "README.md" or path.name in index


def test_every_client_of_the_table_has_a_sample() -> None:
    page = (ROOT / "docs" / "clients.md").read_text("utf-8")
    rows = re.findall(r"^\| \[(.+?)\]\(#(.+?)\)", page, re.MULTILINE)
    assert len(rows) == 18
    for title, anchor in rows:
        assert anchor == title.lower().replace(",", "").replace(" ", "-")
        (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
        assert "```" in section
        assert ADDRESS in section


def test_the_table_names_the_versions_that_are_tested() -> None:
    files = [ROOT / "scripts" / "constraints.txt", *(CLIENTS / "environments").glob("*.txt")]
    pins = {line for path in files for line in path.read_text("utf-8").splitlines()}
    lock = json.loads((node_directory() / "package-lock.json").read_text("utf-8"))["packages"]
    for place, package in lock.items():
        pins.add(f"{place.removeprefix('node_modules/')}=={package.get('version')}")
    page = (ROOT / "docs" / "clients.md").read_text("utf-8")
    named = re.findall(r"`([\w@/-]+)` (\d[\w.-]*)(?:, (\d[\w.-]*))?", page.partition("## curl")[0])
    assert len(named) > 15
    for package, *versions in named:
        for version in filter(None, versions):
            assert f"{package}=={version}" in pins
