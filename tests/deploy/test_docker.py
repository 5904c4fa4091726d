"""The image: its steps are carried out as they stand in the Dockerfile, though without Docker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from server.settings import Settings
from tests.support import dockerfile
from tests.support.live_server import ROOT, start_server
from tests.support.wire import HELLO


def torch_index() -> dict[str, str]:
    """The build argument for a machine that keeps torch's builds for CPUs in a folder of wheels."""
    configured = [sys.executable, "-m", "pip", "config", "list"]
    text = subprocess.run(configured, capture_output=True, text=True, check=True).stdout
    for folder in re.findall(r"find-links='(/[^']*)'", text):
        if list(Path(folder).glob("torch-*+cpu-*.whl")):
            return {"TORCH_INDEX": Path(folder).as_uri()}
    return {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_cpu_image_installs_and_answers(tmp_path: Path) -> None:
    try:
        image = dockerfile.Image(tmp_path, VARIANT="cpu", PIP_RETRIES="2", **torch_index())
    except RuntimeError as error:
        broken = re.search(r"connection broken by .*", str(error))
        if broken is None or not re.search("No matching dist|Max retries exceeded", str(error)):
            raise
        pytest.skip(f"pip reaches no index: {broken[0][:200]}")
    python, *program = dockerfile.command("ENTRYPOINT")
    assert python == "python"
    live = start_server(
        *("--model", "demo"),
        python=image.path("/opt/venv/bin/python"),
        program=tuple(program),
        cwd=image.path("/app"),
        timeout=600,  # nothing of it is compiled or read before
        **image.environment,
    )
    try:
        port = live.url.rpartition(":")[2]
        url = f"http://127.0.0.1:{port}"
        assert httpx2.get(f"{url}/health").status_code == 200
        checked = subprocess.run(
            dockerfile.command("HEALTHCHECK"),
            env={**os.environ, **image.environment, "PHI3V_PORT": port},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert checked.returncode == 0, checked.stderr
        assert httpx2.get(f"{url}/info").status_code == 401
        headers = {"api-key": image.path("/cache/api-key").read_text("ascii").strip()}
        body = {"messages": HELLO, "max_tokens": 8}
        answer = httpx2.post(f"{url}/chat/completions", json=body, headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
    finally:
        assert live.stop() == 0
    text = "".join(live.log)
    assert "clients must send the key in" in text
    assert headers["api-key"] not in text


def test_other_variants_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="VARIANT is cuda or cpu, not tpu"):
        dockerfile.Image(tmp_path, VARIANT="tpu")


def test_a_gpus_packages_are_all_of_the_lock_and_a_cpus_none_of_nvidias(tmp_path: Path) -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    (step,) = (s for s in (rest for n, rest in dockerfile.instructions(0) if n == "RUN"))
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


def test_its_settings_are_settings_and_its_user_has_no_rights(tmp_path: Path) -> None:
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
    (user,) = dockerfile.values("USER")
    assert int(user) > 0
    assert f"--uid {user} " in " ".join(dockerfile.values("RUN"))
