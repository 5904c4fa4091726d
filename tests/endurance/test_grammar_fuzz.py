"""Thousands of grammars at random, through a live server: each is followed or refused by name.

``GRAMMARS=200 scripts/test tests/endurance/test_grammar_fuzz.py`` makes a short run of it.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import jsonschema_rs
import psutil
import pytest

from tests.support.hostile import random_grammars
from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server
from tests.support.servers.neighbours import watched
from tests.support.servers.wire import chat

pytestmark = pytest.mark.slow

logger = logging.getLogger(__name__)

GRAMMARS = int(os.environ.get("GRAMMARS", "3000"))
FEWEST = min(GRAMMARS, 1000)  # on a machine too slow for all of them
MOST_SECONDS = 240
CLIENTS = 6
MIB = 1 << 20


@pytest.fixture(scope="module")
def guided(tiny: Path) -> Iterator[LiveServer]:
    live = start_server("--model", str(tiny), "--dtype", "float32", "--api-key", API_KEY)
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


def check(server: LiveServer, number: int) -> str:
    """Ask for a grammar; what became of it."""
    wanted = random_grammars.request(random.Random(number))
    more = {"max_tokens": 24, "temperature": 1.0, "seed": number}
    response = chat(server, "/v1/chat/completions", **more, **wanted)
    assert len(response.content) < 20_000, number
    if response.status_code != 200:
        assert response.status_code == 422, (number, response.text)
        assert response.json()["code"] in ("invalid_grammar", "invalid_parameter"), number
        return "refused"
    choice = response.json()["choices"][0]
    if choice["finish_reason"] == "stop":
        try:
            check_answer(wanted, choice["message"]["content"])
        except ValueError as error:
            raise AssertionError(f"{number}: {wanted}: {response.text}") from error
    return str(choice["finish_reason"])


def check_answer(wanted: random_grammars.Request, text: str) -> None:
    """What can be checked with another library."""
    if "guided_choice" in wanted:
        assert text in wanted["guided_choice"]
    if "response_format" in wanted:
        schema = wanted["response_format"]["json_schema"]["schema"]
        value = json.loads(text)
        if "pattern" not in json.dumps(schema):  # of another dialect
            jsonschema_rs.validate(schema, value)


@pytest.mark.timeout(900)
def test_grammars_at_random(guided: LiveServer) -> None:
    process = psutil.Process(guided.process.pid)
    outcomes: Counter[str] = Counter()
    deadline = time.monotonic() + MOST_SECONDS
    memory = []
    with watched(guided) as noticed, ThreadPoolExecutor(CLIENTS) as pool:
        for start in range(0, GRAMMARS, 100):
            if start >= FEWEST and time.monotonic() > deadline:
                break
            numbers = range(start, min(start + 100, GRAMMARS))
            outcomes.update(pool.map(lambda number: check(guided, number), numbers))
            memory.append(process.memory_info().rss)
    logger.info("%s; paused %.2f s at most", outcomes, noticed.longest)
    assert outcomes.total() >= FEWEST
    assert all(outcomes[kind] > outcomes.total() // 50 for kind in ("stop", "length", "refused"))
    assert memory[-1] < memory[len(memory) // 2] + 60 * MIB
    assert len(process.children(recursive=True)) < 80
    assert httpx2.get(f"{guided.url}/health").json() == {"status": "ready"}
