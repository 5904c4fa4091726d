"""Stored responses on two replicas by Ray Serve: whoever names one gets to the replica that has it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server.responses.ids import place_of
from tests.ray.ray_server import start_ray_server, until_idle
from tests.ray.streams import begin
from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import AUTHORIZED, check_error

# Ray takes a minute to start, and more on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPLICAS, ONGOING = 2, 2


@pytest.fixture(scope="module")
def ray_server(tiny: Path) -> Iterator[LiveServer]:
    live = start_ray_server(tiny, MIN_REPLICAS=str(REPLICAS), ONGOING_REQUESTS=str(ONGOING))
    yield live
    assert live.stop() == 0


def create(server: LiveServer, **body: Any) -> httpx2.Response:
    body = {"max_output_tokens": 3, "temperature": 0, **body}
    url = f"{server.url}/v1/responses"
    return httpx2.post(url, json=body, headers=AUTHORIZED, timeout=120)


def ask(server: LiveServer, method: str, path: str) -> httpx2.Response:
    url = f"{server.url}/v1/responses/{path}"
    return httpx2.request(method, url, headers=AUTHORIZED, timeout=5)


def one_on_each(server: LiveServer) -> list[str]:
    found: dict[str, str] = {}
    for number in range(100):
        name = create(server, input=f"question {number}").json()["id"]
        found[place_of(name)] = name
        if len(found) == REPLICAS:
            break
    assert len(found) == REPLICAS
    assert "" not in found
    return list(found.values())


def test_follow_ups_find_their_replica(ray_server: LiveServer) -> None:
    for name in one_on_each(ray_server):
        last = name
        for number in range(6):
            more = create(ray_server, input=f"and {number}?", previous_response_id=last)
            assert more.status_code == 200, more.text
            last = more.json()["id"]
            assert place_of(last) == place_of(name)
            assert ask(ray_server, "GET", last).json()["id"] == last
        item = ask(ray_server, "GET", f"{last}/input_items").json()["data"][0]["id"]
        referred = create(ray_server, input=[{"type": "item_reference", "id": item}])
        assert referred.status_code == 200, referred.text
        assert ask(ray_server, "POST", f"{last}/cancel").status_code == 400
        assert ask(ray_server, "DELETE", name).json()["deleted"] is True
        check_error(ask(ray_server, "GET", name), 404, "not_found", [])
        broken = create(ray_server, input="x", previous_response_id=last)
        check_error(broken, 404, "previous_response_not_found", ["previous_response_id"])


def test_a_replica_that_is_gone_is_a_clear_404(ray_server: LiveServer) -> None:
    gone = "resp_" + "0" * 32 + "gone1234"
    check_error(ask(ray_server, "GET", gone), 404, "not_found", [])
    broken = create(ray_server, input="x", previous_response_id=gone)
    check_error(broken, 404, "previous_response_not_found", ["previous_response_id"])


def test_follow_ups_wait_for_their_replica(ray_server: LiveServer) -> None:
    """But what needs no slot does not wait."""
    names = one_on_each(ray_server)
    until_idle(ray_server)
    streams = begin(ray_server, REPLICAS * ONGOING, max_tokens=3000)
    with ThreadPoolExecutor(REPLICAS) as pool:
        waiting = [
            pool.submit(create, ray_server, input="more", previous_response_id=name)
            for name in names
        ]
        for name in names:
            assert ask(ray_server, "GET", name).status_code == 200
        assert not all(stream.end for stream in streams)
        assert [each.result().status_code for each in waiting] == [200] * REPLICAS
    for stream in streams:
        stream.join()
    assert [stream.end for stream in streams] == ["done"] * (REPLICAS * ONGOING)
