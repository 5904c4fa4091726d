"""More connections than there may be: who is refused, and whom probes still reach."""

from __future__ import annotations

import contextlib

import httpx2
import pytest

from server.http.connection_limit import RESERVE
from tests.server.http.bounds import CONNECTIONS, HEAD, taken, until_none_is_open
from tests.support.servers.live_server import LiveServer
from tests.support.servers.raw import check_raw, connection, everything
from tests.support.servers.wire import AUTHORIZED
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def test_connections_beyond_the_limit(bounded: LiveServer) -> None:
    """Some that do nothing: others are told to come again, and get in once those are cut off."""
    url = f"{bounded.url}/info"

    def refusal() -> httpx2.Response | None:
        with taken(bounded):  # some may be cut off before all have come
            answer = httpx2.get(url, headers=AUTHORIZED)
        if answer.status_code == 503:
            return answer
        until_none_is_open(bounded)
        return None

    response = eventually(refusal)
    assert response.headers["retry-after"] == "1"
    assert response.headers["connection"] == "close"
    body = response.json()
    assert body["code"] == "overloaded"
    assert f"too many connections; the limit is {CONNECTIONS} " in body["message"]
    eventually(lambda: httpx2.get(url, headers=AUTHORIZED).status_code == 200)


@pytest.mark.parametrize("others", [0, RESERVE, 100])
@pytest.mark.parametrize("path", ["/health", "/health/live", "//health/ready/"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_beyond_the_limit(bounded: LiveServer, method: str, path: str, others: int) -> None:
    """Whatever else there is: also where others, that say nothing, take the place of probes."""

    def answered_beyond() -> str | None:
        with taken(bounded), contextlib.ExitStack() as stack:
            for _ in range(others):
                stack.enter_context(connection(bounded))
            answer = httpx2.request(method, bounded.url + path)
            assert answer.status_code == 200
        until_none_is_open(bounded)
        return answer.headers.get("connection")

    assert eventually(answered_beyond) == "close"  # its place is for the next


@pytest.mark.parametrize(
    "ask",
    [
        HEAD + b"Content-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: 1000\r\n\r\n",
        b"GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
    ids=["body", "slow body", "other path", "other method", "nothing"],
)
def test_what_is_no_probe_beyond_the_limit(bounded: LiveServer, ask: bytes) -> None:

    def refusal() -> bytes | None:
        with taken(bounded), connection(bounded, ask) as made:
            received = everything(made)
        until_none_is_open(bounded)
        return received if received.startswith(b"HTTP/1.1 503") else None

    check_raw(eventually(refusal), 503, "overloaded")
