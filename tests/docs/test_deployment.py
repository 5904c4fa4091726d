"""What the pages on deployment, sizing and troubles name is there, and computed right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx2
import torch

from model.engine.config import LoadOptions
from model.engine.loading.machine import Machine
from model.engine.loading.memory_plan import MemoryPlan, plan_memory
from server.settings import Settings
from tests.support import dockerfile
from tests.support.engines.official_sizes import FULL, HEADERS
from tests.support.programs import program
from tests.support.servers.live_server import ROOT, LiveServer, start_server

GUIDE = (ROOT / "docs" / "deployment.md").read_text("utf-8")
SIZING = (ROOT / "docs" / "sizing.md").read_text("utf-8")
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = [
    line for block in BLOCKS for line in block.replace("\\\n", "").splitlines() if line.strip()
]
FLAGS = {"--" + name.replace("_", "-") for name in Settings.model_fields}


def test_commands_are_commands() -> None:
    assert len(COMMANDS) > 25
    for block in BLOCKS:
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_what_is_installed_comes_from_git_alone(tmp_path: Path) -> None:
    """A copied .venv would lead back to where it was made, and scripts/setup would keep it."""
    (copy,) = [line for line in COMMANDS if "git archive" in line]
    folder = tmp_path / "phi3v-server"
    code = copy.replace("sudo ", "").replace("/opt/phi3v-server", str(folder))
    subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=ROOT, check=True)
    assert (folder / "pyproject.toml").is_file()
    assert (folder / "scripts" / "setup").stat().st_mode & 0o111
    assert not (folder / ".venv").exists()


def test_files_with_keys_are_not_committed() -> None:
    files = re.findall(r"install -m 600 /dev/null (\S+)", GUIDE)
    assert len(files) == 1
    done = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == files


def test_flags_and_variables_are_settings() -> None:
    in_prose = re.findall(r"`(--[a-z-]+)[^`]*`", re.sub(r"```.*?```", "", GUIDE, flags=re.DOTALL))
    assert len(in_prose) > 5
    assert set(in_prose) <= FLAGS
    for line in COMMANDS:
        if "scripts/serve" in line or "bin/phi3v-server " in line:
            assert set(re.findall(r"--[a-z-]+", line)) <= FLAGS
    variables = set(re.findall(r"PHI3V_[A-Z_]+", GUIDE))
    assert {"--" + v.removeprefix("PHI3V_").lower().replace("_", "-") for v in variables} <= FLAGS


def test_the_image_is_as_it_is_said() -> None:
    arguments = {rest.partition("=")[0] for rest in dockerfile.values("ARG")}
    assert set(re.findall(r"--build-arg (\w+)=", GUIDE)) == {"VARIANT"} <= arguments
    (user,) = dockerfile.values("USER")
    assert set(re.findall(r"chown (\d+)", GUIDE)) == {user}
    (port,) = dockerfile.values("EXPOSE")
    assert set(re.findall(r"-p [\d.:]*:(\d+) ", GUIDE)) == {port}
    (volume,) = dockerfile.values("VOLUME")
    assert set(re.findall(r"phi3v-cache:(\S+)", GUIDE)) == {volume}


def test_messages_are_the_programs_own() -> None:
    """In the table of what may go wrong, left: sentences that the program or Docker says."""
    source = "".join(
        path.read_text("utf-8")
        for part in ("server", "model")
        for path in (ROOT / part).rglob("*.py")
    )
    said = re.sub(r'"\n\s*f?"', "", source)
    (table,) = re.findall(r"## When something is wrong\n\n(.*?)\n\n", TROUBLES, re.DOTALL)
    left = [row.split("|")[1] for row in table.splitlines()[2:]]
    ours = [
        text for cell in left if "Docker" not in cell for text in re.findall(r"`([^`]+)`", cell)
    ]
    assert len(ours) > 7
    assert [text for text in ours if text not in said] == []


def plan(gigabytes: int) -> MemoryPlan:
    """Of the official model on a GPU of its own."""
    options = LoadOptions("", dtype="bfloat16")
    total = int(gigabytes * 1e9)
    free = int(options.gpu_memory_utilization * total)
    return plan_memory(HEADERS, FULL, options, [Machine(torch.device("cuda"), free, "", total)])


def test_what_follows_from_the_card_is_as_the_page_says() -> None:
    """Its other numbers are written by ``scripts.sizing_page``."""
    choices = SIZING.partition("| CPU |")[2]
    for found, chunk in ((plan(24), "2,048"), (plan(80), "8,192")):
        assert f"{found.prefill_chunk:,}" == chunk
        assert chunk in choices
    assert plan(80).max_num_seqs == 256
    assert "from 16 to 256" in choices


def test_the_first_questions_are_answered(tiny: Path) -> None:
    program("curl")
    live: LiveServer = start_server("--model", str(tiny))
    try:
        (block,) = (block for block in BLOCKS if "curl" in block)
        code = block.replace("http://127.0.0.1:8000", live.url).replace("curl ", "curl --fail ")
        done = subprocess.run(["bash", "-euc", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert '"object":"chat.completion"' in done.stdout
        assert httpx2.get(live.url).status_code == 200  # the page
    finally:
        assert live.stop() == 0


def test_check_takes_a_folder(tiny: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("phi3v-server"), "check", tiny],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
