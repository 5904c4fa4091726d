"""A server by Ray Serve as its tests start it, and which of its processes does what."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.support.servers.live_server import API_KEY, LiveServer, start_server
from tests.support.servers.wire import AUTHORIZED
from tests.support.waiting import eventually

CHANGE = 240  # seconds for replicas to come, to go, or to finish their answers


def start_ray_server(checkpoint: Path, **settings: str) -> LiveServer:
    """Start a cluster of its own; settings are variables without ``PHI3V_``."""
    variables: dict[str, Any] = {
        "MODEL": str(checkpoint),
        "DTYPE": "float32",
        "API_KEY": API_KEY,
        "CPUS_PER_REPLICA": "0.5",
        "MAX_OUTPUT_TOKENS": "64",
        "DRAIN_TIMEOUT": "200",
        **settings,
    }
    return start_server(
        program=("-m", "tests.ray.cluster"),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_DEDUP_LOGS="0",
        **{f"PHI3V_{name}": value for name, value in variables.items()},
    )


def replicas(server: LiveServer) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if process.cmdline()[:1] and "ServeReplica:default:Replica" in process.cmdline()[0]:
                found.append(process)
        except psutil.Error:
            continue  # it has ended
    return found


def logged_by(server: LiveServer, request_id: str) -> int:
    """The process that has logged a request: the replica, or a gateway that has refused it."""
    (line,) = eventually(
        lambda: [each for each in server.log if f"request_id={request_id} " in each]
    )
    match = re.match(r"\S*\(ServeReplica:default:\w+ pid=(\d+)", line)
    assert match is not None, line
    return int(match[1])


def metrics(server: LiveServer) -> list[str]:
    """Of the replicas that answer; asked often enough to meet each."""
    return [httpx2.get(f"{server.url}/metrics", headers=AUTHORIZED).text for _ in range(16)]


def busy(server: LiveServer) -> bool:
    return any("phi3v_num_requests_running 0.0" not in text for text in metrics(server))


def until_idle(server: LiveServer) -> None:
    eventually(lambda: not busy(server), CHANGE)


def answering(server: LiveServer) -> set[int]:
    """The replicas that answer what is no POST: a process that starts takes no requests yet."""
    names = [f"answering-{uuid.uuid4().hex}" for _ in range(16)]
    for name in names:
        headers = AUTHORIZED | {"x-request-id": name}
        assert httpx2.get(f"{server.url}/metrics", headers=headers, timeout=5).status_code == 200
    return {logged_by(server, name) for name in names}


def text_of(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text
