"""The deployment for Azure Machine Learning: by Azure's own schema, and by what the server and image say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.routing import APIRoute

from server.routes import health
from server.settings import Settings
from tests.support import dockerfile
from tests.support.client_environments import python_with
from tests.support.servers.live_server import ROOT

FILE = ROOT / "scripts" / "deploy" / "azureml-deployment.yml"
TEXT = FILE.read_text("utf-8")
DEPLOYMENT: dict[str, Any] = yaml.safe_load(TEXT)
ROUTES = DEPLOYMENT["environment"]["inference_config"]
LOAD = "import sys; from azure.ai.ml import load_online_deployment as load; load(sys.argv[1])"


def test_azure_asks_where_the_server_answers() -> None:
    (port,) = dockerfile.values("EXPOSE")
    assert ROUTES.keys() == {"liveness_route", "readiness_route", "scoring_route"}
    assert {route["port"] for route in ROUTES.values()} == {int(port)}
    paths = {route.path for route in health.router.routes if isinstance(route, APIRoute)}
    assert ROUTES["liveness_route"]["path"] == "/health/live"
    assert ROUTES["readiness_route"]["path"] == "/health/ready"
    assert {"/health/live", "/health/ready"} <= paths
    assert ROUTES["scoring_route"]["path"] == "/"  # above all routes, Azure's and those of /v1


def test_variables_are_settings() -> None:
    variables = DEPLOYMENT["environment_variables"]
    names = {name.removeprefix("PHI3V_").lower() for name in variables}
    assert names <= Settings.model_fields.keys()
    assert all(isinstance(value, str) for value in variables.values())  # as Azure wants them
    # Azure checks its own key and passes it on: the server must not ask for another one.
    assert variables["PHI3V_INSECURE"] == "true"
    mentioned = {name.lower() for name in re.findall(r"\bPHI3V_([A-Z_]*[A-Z])\b", TEXT)}
    assert mentioned <= Settings.model_fields.keys()


def test_a_start_with_its_download_may_take_half_an_hour() -> None:
    probe = DEPLOYMENT["readiness_probe"]
    assert probe["initial_delay"] + probe["period"] * probe["failure_threshold"] >= 1800


@pytest.mark.slow
@pytest.mark.timeout(300)  # the first run makes the environment
def test_azures_schema_takes_the_file(tmp_path: Path) -> None:
    python = python_with("azure-ml")

    def load(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "deployment.yml").write_text(text, "utf-8")
        command = [str(python), "-c", LOAD, str(tmp_path / "deployment.yml")]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    done = load(TEXT)
    assert done.returncode == 0, done.stderr
    misspelt = load(TEXT.replace("failure_threshold", "failure_treshold"))
    assert misspelt.returncode != 0
    assert "failure_treshold" in misspelt.stdout + misspelt.stderr
