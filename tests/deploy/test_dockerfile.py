"""What the Dockerfile says, where building the image for CPUs shows nothing of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

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


def test_its_settings_are_settings() -> None:
    text = " ".join(dockerfile.values("ENV"))
    variables = re.findall(r"\bPHI3V_([A-Z_]+)=(\S+)", text)
    settings = {name.lower(): value for name, value in variables}
    assert settings.keys() <= Settings.model_fields.keys()
    assert settings["host"] == "0.0.0.0"
    (exposed,) = dockerfile.values("EXPOSE")
    assert exposed == settings["port"]
    # Without a key there is one; nobody is let in without any.
    assert Settings(**settings).requires_auth
    assert not Settings(**settings, insecure=True).requires_auth
    (volume,) = dockerfile.values("VOLUME")
    assert Path(volume) in Path(settings["generated_key_file"]).parents
