"""GuideLLM, a load generator: the documented run, without a failed request."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from tests.support.client_environments import python_with
from tests.support.servers.live_server import API_KEY, ROOT, LiveServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run makes the environment


def borrowed_torch(folder: Path) -> Path:
    """A folder with the project's own torch, which GuideLLM's data loader needs: a second one is large."""
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for part in Path(torch.__file__).parents[1].glob("torch*"):
        (borrowed / part.name).symlink_to(part)
    return borrowed


def test_the_documented_run_has_no_errors(server: LiveServer, tiny: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    page = (ROOT / "docs" / "clients.md").read_text("utf-8")
    (documented,) = re.findall(r"```sh\n(guidellm .*?)```", page, re.DOTALL)
    command = documented.replace("\\\n", "").replace("http://127.0.0.1:8000", server.url)
    command = command.replace("model=phi3v", f"model=phi3v,api_key={API_KEY}")
    command = command.replace("microsoft/Phi-3-vision-128k-instruct", str(tiny))
    command += f" --disable-console --output kind=json,path={report}"
    arguments = [str(python_with("guidellm")), "-m", *shlex.split(command)]
    environment = {**os.environ, "PYTHONPATH": str(borrowed_torch(tmp_path)), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (benchmark,) = json.loads(report.read_text("utf-8"))["benchmarks"]
    requests = benchmark["requests"]
    assert requests["errored"] == requests["incomplete"] == []
    assert len(requests["successful"]) == 20
    for request in requests["successful"]:
        assert request["output_metrics"]["text_tokens"] == 32
        assert "continuous_usage_stats" in request["request_args"]
