"""Settings of a deployment by Ray Serve, and what is refused before anything starts."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from server.ray.settings import RaySettings
from tests.support.servers.live_server import ROOT


def test_defaults() -> None:
    settings = RaySettings(insecure=True)
    assert (settings.min_replicas, settings.most_replicas, settings.gpus) == (1, 1, 0)
    assert settings.ongoing == 16
    assert RaySettings(insecure=True, device="cuda").ongoing == 64
    assert RaySettings(insecure=True, device="cuda", max_num_seqs=200).ongoing == 200
    assert RaySettings(insecure=True, device="cuda").gpus == 1
    assert RaySettings(insecure=True, device="cuda", gpus_per_replica=0.5).gpus == 0.5
    assert RaySettings(insecure=True, pipeline_parallel_size=2).gpus == 2
    with pytest.raises(ValidationError, match="pipeline_parallel_size is 2, but gpus_per_replica"):
        RaySettings(insecure=True, pipeline_parallel_size=2, gpus_per_replica=1)
    with pytest.raises(ValidationError, match="unset one"):
        RaySettings(insecure=True, device="cuda", gpus_per_replica=0)
    with pytest.raises(ValidationError, match="unset one"):
        RaySettings(insecure=True, device="cpu", pipeline_parallel_size=2)
    assert RaySettings(insecure=True, min_replicas=3).most_replicas == 3
    assert (settings.upscale_delay, settings.downscale_delay) == (30, 600)


def test_gateways_share_slots() -> None:
    sizes: dict[str, Any] = {"max_replicas": 3, "ongoing_requests": 5, "queued_requests": 7}
    settings = RaySettings(insecure=True, gateways=2, max_connections=10, **sizes)
    assert (settings.replica_slots, settings.requests_in_gateway) == (8, 25)


def test_environment_and_arguments_as_ray_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHI3V_API_KEY", "a-key")
    monkeypatch.setenv("PHI3V_MIN_REPLICAS", "2")
    monkeypatch.setenv("PHI3V_MAX_REPLICAS", "3")
    texts: dict[str, Any] = {"max_replicas": "4", "max_num_seqs": "8"}
    settings = RaySettings(**texts)
    assert (settings.min_replicas, settings.max_replicas, settings.ongoing) == (2, 4, 8)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"insecure": False}, "set PHI3V_API_KEY"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas must be at least min_replicas"),
        ({"ssl_certfile": __file__}, "terminate TLS in front of them"),
        ({"insecure": False, "generated_key_file": "key"}, "generated_key_file.*PHI3V_API_KEY"),
        ({"insecure": False, "api_key": ""}, "api_key\n  must not be blank"),
        ({"insecure": False, "api_key": " \t"}, "api_key\n  must not be blank"),
        ({"insecure": False, "api_keys": ""}, "api_keys\n  must not be blank"),
        ({"insecure": False, "api_keys_file": ""}, "api_keys_file"),
        ({"replicas": 2}, "replicas"),
        ({"queued_requests": 0}, "queued_requests"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        RaySettings(**{"insecure": True} | given)


def test_the_server_needs_no_ray() -> None:
    program = "import sys; sys.modules['ray'] = None; import server.run, server.ray.settings"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_serve_run_says_what_is_missing() -> None:
    program = "from ray.serve.scripts import cli; cli(['run', 'server.ray_serve:app'])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "set PHI3V_API_KEY" in done.stderr
    assert "Started a local Ray instance" not in done.stderr
