"""A server with low limits, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.server.http.bounds import CONNECTIONS, SECONDS, until_none_is_open
from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server


@pytest.fixture(scope="package")
def bounded(tiny: Path) -> Iterator[LiveServer]:
    """A server with low limits."""
    live = start_server(
        *("--model", str(tiny), "--dtype", "float32", "--api-key", API_KEY),
        *("--header-timeout", str(SECONDS), "--body-timeout", str(SECONDS)),
        *("--idle-timeout", str(SECONDS), "--write-timeout", str(SECONDS)),
        *("--max-connections", str(CONNECTIONS)),
        *("--max-body-mb", "3", "--max-bodies-mb", "4", "--max-images", "3"),
        *("--max-waiting-tokens", "1500", "--max-waiting-memory", "0.01"),
    )
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


@pytest.fixture
def nothing_is_left(bounded: LiveServer) -> Iterator[None]:
    """After the test the server is well, and no connection of it is open."""
    yield
    assert httpx2.get(f"{bounded.url}/health").json() == {"status": "ready"}
    until_none_is_open(bounded)
