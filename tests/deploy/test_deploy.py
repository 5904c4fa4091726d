"""The examples in scripts/deploy say what the program knows: its settings, routes and files."""

from __future__ import annotations

import configparser
import ipaddress
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from fastapi.routing import APIRoute

from server.routes import health
from server.settings import Settings
from tests.deploy.unit_file import complaints
from tests.support import dockerfile
from tests.support.servers.live_server import ROOT

DEPLOY = ROOT / "scripts" / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
OBJECTS: dict[str, dict[str, Any]] = {
    document["kind"]: document
    for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
}
UNIT = (DEPLOY / "phi3v-server.service").read_text("utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
DRAIN = Settings.model_fields["drain_timeout"].default


@pytest.mark.parametrize(
    "file", ["cloud-init.yaml", "compose.yaml", "kubernetes.yaml", "phi3v-server.service"]
)
def test_variables_are_settings(file: str) -> None:
    names = re.findall(r"\bPHI3V_([A-Z_]*[A-Z])\b", (DEPLOY / file).read_text("utf-8"))
    assert names.count("API_KEY") + names.count("API_KEYS_FILE") > 0
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


def test_the_pod_is_probed_where_the_server_answers() -> None:
    pod = OBJECTS["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {route.path for route in health.router.routes if isinstance(route, APIRoute)}
    for probe, path in (("livenessProbe", "/health/live"), ("readinessProbe", "/health/ready")):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
        assert path in paths
    (port,) = container["ports"]
    assert f"EXPOSE {port['containerPort']}\n" in DOCKERFILE
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert f"USER {pod['securityContext']['runAsUser']}\n" in DOCKERFILE


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "Deployment", "Service"])
def test_kubernetes_takes_the_objects(kind: str, version: str) -> None:
    kubernetes_validate.validate(OBJECTS[kind], version, strict=True)
    misspelt = {**OBJECTS[kind], "metdata": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="metdata"):
        kubernetes_validate.validate(misspelt, version, strict=True)


def test_kubernetes_has_no_other_objects() -> None:
    assert OBJECTS.keys() == {"PersistentVolumeClaim", "Deployment", "Service"}


def test_kubernetes_names_fit_each_other() -> None:
    deployment, service = OBJECTS["Deployment"]["spec"], OBJECTS["Service"]["spec"]
    pod = deployment["template"]
    assert deployment["selector"]["matchLabels"] == service["selector"] == pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {"/cache", "/tmp"}
    assert set(mounts.values()) == volumes.keys()
    claim = volumes[mounts["/cache"]]["persistentVolumeClaim"]["claimName"]
    assert claim == OBJECTS["PersistentVolumeClaim"]["metadata"]["name"]
    assert service["ports"][0]["targetPort"] == container["ports"][0]["name"]


def test_compose_fits_the_specification() -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    schema = ["--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [program, *schema, DEPLOY / "compose.yaml"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_names_what_is_there() -> None:
    services = COMPOSE["services"]
    assert services.keys() == {"server", "prometheus", "grafana"}
    assert (DEPLOY / services["server"]["build"] / "Dockerfile").is_file()
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_file()
            else:
                assert source in COMPOSE["volumes"]
    assert "cache:/cache" in services["server"]["volumes"]
    # Services find each other by name, in the network that they have unless they name one, and the
    # server listens there as long as nothing changes what the image says.
    assert not any({"network_mode", "networks"} & service.keys() for service in services.values())
    (port,) = dockerfile.values("EXPOSE")
    scraped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert scraped[0]["static_configs"] == [{"targets": [f"server:{port}"]}]
    assert "PHI3V_HOST=0.0.0.0" in " ".join(dockerfile.values("ENV")).split()
    assert not {"PHI3V_HOST", "PHI3V_PORT"} & services["server"]["environment"].keys()


def test_without_tls_only_the_machine_itself_is_answered() -> None:
    published = [
        port for service in COMPOSE["services"].values() for port in service.get("ports", [])
    ]
    assert len(published) == 2
    for port in published:
        assert ipaddress.ip_address(port.rsplit(":", 2)[0]).is_loopback
    hosts = re.findall(r"\bPHI3V_HOST=(\S+)", UNIT)
    assert [ipaddress.ip_address(host).is_loopback for host in hosts] == [True]


def test_answers_get_their_time_to_finish() -> None:
    pod = OBJECTS["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > DRAIN
    assert int(COMPOSE["services"]["server"]["stop_grace_period"].rstrip("s")) > DRAIN
    unit = configparser.RawConfigParser(strict=False)  # a key may come twice
    unit.read_string(UNIT)
    assert unit.getint("Service", "TimeoutStopSec") > DRAIN


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
def test_the_unit_is_one(tmp_path: Path) -> None:
    program = "/opt/phi3v-server/.venv/bin/phi3v-server"
    assert UNIT.count(program) == 1
    text = UNIT.replace(program, sys.executable)  # which must exist
    assert complaints(text, tmp_path) == []
    assert complaints(text.replace("RestartSec", "RestartSek"), tmp_path) != []
