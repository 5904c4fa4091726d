"""Thousands of requests of all kinds from clients that misbehave: right answers, and nothing left.

``CHAOS_REQUESTS=300 scripts/test tests/endurance/test_chaos.py`` makes a short run of it.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.support.servers.live_server import LiveServer, check_log, start_server
from tests.support.servers.wire import data_url
from tests.support.waiting import eventually

REQUESTS = int(os.environ.get("CHAOS_REQUESTS", "5000"))
FEWEST = min(REQUESTS, 1000)  # on a machine too slow for all of them
MOST_SECONDS = 420
CLIENTS = 32
MIB = 1 << 20
MOST_GROWTH = 0.05  # of resident memory, beyond what it is after the first half
ROUTE = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer"}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
BAD: list[tuple[bytes, int]] = [
    (b"{", 400),
    (b"", 400),
    (b"[]", 422),
    (b'{"messages": []}', 422),
    (b'{"messages": [{"role": "user", "content": "a"}], "temperature": 9}', 422),
    (b'{"messages": [{"role": "user", "content": "a"}], "tools": [1]}', 422),
    (b'{"messages": [{"role": "user", "content": "a"}], "guided_regex": "("}', 422),
    (
        b'{"messages": [{"role": "user", "content": [{"type": "image_url", '
        b'"image_url": {"url": "data:image/png;base64,AAAA"}}]}]}',
        422,
    ),
]


def picture(number: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (120 + 90 * number, 100), (80 * number, 90, 200)).save(file, "PNG")
    return data_url(file.getvalue())


def questions() -> list[dict[str, Any]]:
    """Greedy requests of every kind, whose answers are therefore known."""
    found: list[dict[str, Any]] = []
    for number in range(12):
        start = "once upon a time " * (number % 4 * 6)
        message = {"role": "user", "content": f"{start}there were {number} of them"}
        found.append({"messages": [message], "max_tokens": 4 + 3 * number})
    for number in range(3):
        parts = [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": picture(number)}},
        ]
        found.append({"messages": [{"role": "user", "content": parts}], "max_tokens": 6})
    for number in range(3):
        wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
        message = {"role": "user", "content": f"Describe number {number}"}
        found.append({"messages": [message], "max_tokens": 40, "response_format": wanted})
    return [{**body, "temperature": 0} for body in found]


class Chaos:
    """The clients, and what became of their requests."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.questions = questions()
        self.answers = [self.alone(body) for body in self.questions]
        self.fates: Counter[str] = Counter()
        self.sizes: list[float] = []
        self.end = 0.0

    def alone(self, body: dict[str, Any]) -> tuple[str, str]:
        answer = httpx2.post(self.server.url + ROUTE, json=body, timeout=120).json()
        (choice,) = answer["choices"]
        return choice["message"]["content"], choice["finish_reason"]

    async def run(self) -> None:
        numbers = iter(range(REQUESTS))
        self.end = time.monotonic() + MOST_SECONDS
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self.server.url, connector=connector) as session:
            await asyncio.gather(*(self.client(session, numbers) for _ in range(CLIENTS)))

    async def client(self, session: aiohttp.ClientSession, numbers: Iterator[int]) -> None:
        for number in numbers:
            if time.monotonic() > self.end:
                return
            self.fates[await self.one(session, random.Random(number))] += 1
            if number % 20 == 0:
                process = psutil.Process(self.server.process.pid)
                self.sizes.append(process.memory_info().rss / MIB)

    async def one(self, session: aiohttp.ClientSession, rng: random.Random) -> str:
        """Ask once, rightly or wrongly, and perhaps leave; returns what became of it."""
        if rng.random() < 0.1:
            content, status = rng.choice(BAD)
            headers = {"Content-Type": "application/json"}
            async with session.post(ROUTE, data=content, headers=headers) as response:
                assert response.status == status, (content, await response.text())
            return "refused"
        which = rng.randrange(len(self.questions))
        body, expected = self.questions[which], self.answers[which]
        n = rng.choice([1, 1, 1, 2, 3])
        stream = rng.random() < 0.5
        asking = self.ask(session, {**body, "n": n, "stream": stream}, stream)
        if rng.random() < 0.2:
            try:
                await asyncio.wait_for(asking, rng.random() ** 3)
            except TimeoutError:
                return "left"
            return "ended before it left"
        answers = await asking
        assert answers == dict.fromkeys(range(n), expected), body
        return "streamed" if stream else "answered"

    async def ask(
        self, session: aiohttp.ClientSession, body: dict[str, Any], stream: bool
    ) -> dict[int, tuple[str, str]]:
        """Text and finish reason of each answer."""
        async with session.post(ROUTE, json=body) as response:
            assert response.status == 200, await response.text()
            if not stream:
                choices = (await response.json())["choices"]
                return {c["index"]: (c["message"]["content"], c["finish_reason"]) for c in choices}
            whole: dict[int, str] = {}
            reasons: dict[int, str] = {}
            last = b""
            async for line in response.content:
                last = line if line.strip() else last
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        index = choice["index"]
                        whole[index] = whole.get(index, "") + (choice["delta"].get("content") or "")
                        if choice["finish_reason"]:
                            reasons[index] = choice["finish_reason"]
            assert last == b"data: [DONE]\n"
            return {index: (text, reasons[index]) for index, text in whole.items()}


def numbers(server: LiveServer) -> dict[str, float]:
    text = httpx2.get(f"{server.url}/metrics", timeout=60).text
    return {
        sample.name + "".join(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_kinds_of_requests_by_clients_that_come_and_go(tiny: Path) -> None:
    # Caches are small, so that they are full, and as large as they get, before the first half is over.
    sizes = ("--kv-cache-memory", "0.01", "--embedding-cache-memory", "0.001")
    live = start_server(
        *("--model", str(tiny), "--dtype", "float32", "--max-model-len", "1024"), *sizes
    )
    try:
        chaos = Chaos(live)
        asyncio.run(chaos.run())
        assert chaos.fates.total() >= FEWEST
        assert min(chaos.fates[fate] for fate in ("refused", "left", "streamed", "answered")) > 0
        eventually(lambda: not numbers(live)["phi3v_num_requests_running"], what="nothing runs")
        found = numbers(live)
        assert found["phi3v_num_requests_waiting"] == 0
        assert found["phi3v_kv_blocks_used"] == 0
        assert found["phi3v_failed_steps_total"] == 0
        assert not [
            name
            for name in found
            if name.startswith("phi3v_http") and name.endswith(("500", "503"))
        ]
        half = len(chaos.sizes) // 2
        warm, late = chaos.sizes[half], sorted(chaos.sizes[half:])[-1]
        assert late < (1 + MOST_GROWTH) * warm, chaos.sizes
    finally:
        assert live.stop() == 0
    check_log("".join(live.log))
