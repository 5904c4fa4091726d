"""What the Dockerfile says, where building the image for CPUs shows nothing of it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from server.settings import Settings
from tests.support import dockerfile
from tests.support.servers.live_server import ROOT


def test_a_gpus_packages_are_all_of_the_lock_and_a_cpus_none_of_nvidias() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    (step,) = (rest for name, rest in dockerfile.instructions(0) if name == "RUN")
    awk = re.search(r"awk '([^']*)' requirements\.lock", step)
    assert awk is not None
    found = subprocess.run(
        ["awk", awk[1]], input=lock, capture_output=True, text=True, check=True
    ).stdout
    names = re.compile(r"^([a-z0-9-]+)==", re.MULTILINE)
    left_out = set(names.findall(lock)) - set(names.findall(found))
    assert {"torch", "triton", "nvidia-cublas", "cuda-toolkit"} <= left_out
    assert all(name in ("torch", "triton") or name[:4] in ("cuda", "nvid") for name in left_out)
    assert found.count("--hash=sha256:") > 500
    assert "cuda) cp requirements.lock packages.lock ;;" in step


@pytest.mark.parametrize("variant", ["cuda", "cpu"])
def test_its_settings_are_settings(variant: str) -> None:
    text = " ".join(dockerfile.values("ENV"))
    variables = re.findall(r"\bPHI3V_([A-Z_]+)=(\S+)", text)
    settings = {name.lower(): value.replace("$VARIANT", variant) for name, value in variables}
    assert settings["device"] == variant
    assert settings.keys() <= Settings.model_fields.keys()
    assert settings["host"] == "0.0.0.0"
    (exposed,) = dockerfile.values("EXPOSE")
    assert exposed == settings["port"]
    # Without a key there is one; nobody is let in without any.
    assert Settings(**settings).requires_auth
    assert not Settings(**settings, insecure=True).requires_auth
    (volume,) = dockerfile.values("VOLUME")
    assert Path(volume) in Path(settings["generated_key_file"]).parents


def test_both_stages_take_the_same_variant() -> None:
    """An argument is known only in the stage that names it."""
    for stage in (0, 1):
        named = [rest for name, rest in dockerfile.instructions(stage) if name == "ARG"]
        assert "VARIANT=cuda" in named


@pytest.mark.parametrize(("variant", "installs"), [("cuda", True), ("cpu", False)])
def test_a_gpus_image_alone_has_a_compiler(variant: str, installs: bool, tmp_path: Path) -> None:
    """The step is run, with a program that only writes down what it is told."""
    steps = [rest for name, rest in dockerfile.instructions(1) if name == "RUN"]
    (step,) = (step for step in steps if "apt-get" in step)
    told = tmp_path / "told"
    for program in ("apt-get", "rm"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho {program} "$@" >>{told}\n')
        (tmp_path / program).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "VARIANT": variant}
    subprocess.run(["sh", "-euc", step], env=environment, check=True)
    assert told.exists() == installs
    if installs:
        _, install, _ = told.read_text("utf-8").splitlines()
        assert install.split()[-2:] == ["gcc", "libc6-dev"]


def test_caches_are_in_the_volume() -> None:
    text = " ".join(dockerfile.values("ENV"))
    places = dict(re.findall(r"\b(\w+(?:_HOME|_CACHE_DIR))=(\S+)", text))
    (volume,) = dockerfile.values("VOLUME")
    assert places.keys() == {"HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR"}
    assert all(Path(place).is_relative_to(volume) for place in places.values())


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_compiler_needs_no_more_than_the_image_has(tmp_path: Path) -> None:
    """Triton's launcher includes headers of libc and Python, and links the driver's library alone."""
    found = importlib.util.find_spec("triton")  # not imported: it would choose not to interpret
    if found is None or found.origin is None:
        pytest.skip("needs triton")
    folder = Path(found.origin).resolve().parent / "backends" / "nvidia"
    source = folder / "driver.c"
    flags = [f"-I{folder / 'include'}", f"-I{sysconfig.get_path('include')}"]
    done = subprocess.run(["gcc", "-M", source, *flags], capture_output=True, text=True, check=True)
    files = {Path(word).resolve() for word in done.stdout.replace("\\\n", "").split()[1:]}
    own = (folder, Path(sysconfig.get_path("include")).resolve(), Path("/usr/lib/gcc"))
    others = {file for file in files if not any(file.is_relative_to(place) for place in own)}
    assert any(file.name == "Python.h" for file in files)
    assert others
    assert all(file.is_relative_to("/usr/include") for file in others)
    assert "\nlibraries = ['libcuda.so.1']\n" in (folder / "driver.py").read_text("utf-8")
