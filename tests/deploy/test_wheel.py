"""The wheel: installed into an empty environment it serves the demo, and it holds what it should."""

from __future__ import annotations

import io
import re
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import httpx2
import pytest
from PIL import Image, ImageDraw

from server import __version__
from tests.deploy.container.package_sources import skip_if_unreachable
from tests.deploy.installation import build_wheel, install, tracked
from tests.support.programs import remove
from tests.support.servers.live_server import ROOT, LiveServer, check_log, start_server
from tests.support.servers.wire import data_url, image_message

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PLAYGROUND = ROOT / "server" / "playground"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that goes when the tests are done: an environment has more than a gigabyte."""
    found = tmp_path_factory.mktemp("wheel")
    yield found
    remove(found)


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    try:
        return build_wheel(folder)
    except RuntimeError as error:
        skip_if_unreachable(error)
        raise


@pytest.fixture(scope="module")
def programs(wheel: Path, folder: Path) -> Path:
    """The folder of programs of an environment that has the wheel and what it needs."""
    try:
        return install(wheel, folder)
    except RuntimeError as error:
        skip_if_unreachable(error)
        raise


@pytest.fixture(scope="module")
def demo(programs: Path, folder: Path) -> Iterator[LiveServer]:
    """The installed program as it starts with no flags, in a folder that has nothing."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    live = start_server(
        python=programs / "phi3v-server",
        program=(),
        cwd=elsewhere,
        timeout=600,  # nothing of it is compiled or read before
        XDG_CACHE_HOME=str(folder / "kernels"),
    )
    yield live
    live.stop()


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    """The files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: list[str]) -> Message:
    """What the wheel says of the project."""
    (name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return BytesParser().parsebytes(archive.read(name))


def red_circle() -> str:
    image = Image.new("RGB", (300, 300), (170, 175, 180))
    ImageDraw.Draw(image).ellipse((110, 110, 190, 190), fill="red")
    file = io.BytesIO()
    image.save(file, "PNG")
    return data_url(file.getvalue())


def test_it_has_the_code_and_no_other_folder_of_the_project(names: list[str]) -> None:
    folders = {name.partition("/")[0] for name in names}
    assert folders == {"model", "server", f"phi3v_server-{__version__}.dist-info"}
    assert not [name for name in names if "__pycache__" in name]


def test_it_has_every_file_of_the_code(names: list[str]) -> None:
    assert set(tracked("model", "server")) <= set(names)


def test_its_metadata_is_the_projects(metadata: Message) -> None:
    assert metadata["Name"] == PROJECT["name"]
    assert metadata["Version"] == __version__
    assert metadata["Summary"] == PROJECT["description"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]


def test_its_description_is_the_readme(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    payload = metadata.get_payload(decode=True)
    assert isinstance(payload, bytes)
    assert payload.decode().strip() == (ROOT / PROJECT["readme"]).read_text("utf-8").strip()


def test_its_licence_is_the_one_that_the_project_claims(
    metadata: Message, names: list[str]
) -> None:
    """None is claimed as long as there is none."""
    assert metadata["License-Expression"] == PROJECT.get("license")
    files = metadata.get_all("License-File", [])
    assert len(files) == len([path for path in ROOT.iterdir() if path.match("LICEN[CS]E*")])
    assert all(any(name.endswith(f"/licenses/{file}") for name in names) for file in files)


def test_the_installed_program_answers_truthfully(demo: LiveServer) -> None:
    messages = image_message(red_circle())
    messages[0]["content"].append({"type": "text", "text": "What colour is the circle?"})
    answer = httpx2.post(
        f"{demo.url}/chat/completions", json={"messages": messages}, timeout=120
    ).json()
    assert "red" in answer["choices"][0]["message"]["content"]


def test_its_playground_has_all_that_the_page_names(demo: LiveServer) -> None:
    page = httpx2.get(demo.url)
    assert page.status_code == 200
    named = re.findall(r'(?:src|href)="(playground/[^"]+)"', page.text)
    assert "playground/main.js" in named
    assert {httpx2.get(f"{demo.url}/{path}").status_code for path in named} == {200}


@pytest.mark.parametrize(
    "path",
    [path.relative_to(PLAYGROUND).as_posix() for path in sorted(PLAYGROUND.rglob("*.js"))],
)
def test_its_playground_has_every_script(demo: LiveServer, path: str) -> None:
    script = httpx2.get(f"{demo.url}/playground/{path}")
    assert script.status_code == 200
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.content == (PLAYGROUND / path).read_bytes()


def test_sigterm_ends_it_with_status_0(demo: LiveServer) -> None:
    assert demo.stop() == 0
    check_log("".join(demo.log))
