"""Requests that take long to prepare keep others waiting as little as can be."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import httpx2
import pytest

from tests.support.servers.live_server import LiveServer, check_log, start_server
from tests.support.servers.neighbours import watched
from tests.support.servers.wire import HELLO, chat, data_url, image_message, png

KEYS = 'alice = "a-key-for-tests"\nbob = "key-of-bob"'
FLOOD = 12


@pytest.fixture(scope="module")
def shared(tiny: Path) -> Iterator[LiveServer]:
    """A server with two callers."""
    live = start_server("--model", str(tiny), "--dtype", "float32", PHI3V_API_KEYS=KEYS)
    assert chat(live, messages=image_message(data_url(png(20, 10)))).status_code == 200
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


def ask(server: LiveServer, url: str, caller: str = "a-key-for-tests") -> httpx2.Response:
    """A picture's tokens: all that takes long is to decode and cut it."""
    body, headers = {"messages": image_message(url)}, {"api-key": caller}
    return httpx2.post(f"{server.url}/tokenize", json=body, headers=headers, timeout=200)


def large(number: int) -> str:
    """A few kB that become 60 MB."""
    return data_url(png(5000, 4000 - number))


def test_text_does_not_wait_for_pictures(shared: LiveServer) -> None:
    pictures = [large(number) for number in range(FLOOD)]
    with watched(shared), ThreadPoolExecutor(FLOOD) as pool:
        running = [pool.submit(ask, shared, url) for url in pictures]
        wait(running, return_when=FIRST_COMPLETED)
        text = chat(shared, messages=HELLO)
        left = [each for each in running if not each.done()]
        assert text.status_code == 200
        assert len(left) > FLOOD // 2
        assert {each.result().status_code for each in running} == {200}


@pytest.mark.slow
def test_a_callers_pictures_take_turns_with_those_of_others(shared: LiveServer) -> None:
    pictures = [large(number) for number in range(FLOOD)]
    with ThreadPoolExecutor(FLOOD + 1) as pool:
        running: list[Future[httpx2.Response]]
        running = [pool.submit(ask, shared, url) for url in pictures]
        wait(running, return_when=FIRST_COMPLETED)
        answer = ask(shared, large(FLOOD), "key-of-bob")
        left = [each for each in running if not each.done()]
        assert answer.status_code == 200
        assert len(left) > FLOOD // 4
        assert {each.result().status_code for each in running} == {200}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_elongated_pictures_are_refused_from_their_head(shared: LiveServer) -> None:
    """This one ends after its head: had more been looked at, it would be broken."""
    size = struct.pack(">IIBBBBB", 1, 50_000_000, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"")
    response = ask(shared, data_url(data))
    assert (response.status_code, response.json()["code"]) == (422, "invalid_image")
    assert "an aspect ratio of 50000000 to 1" in response.json()["message"]
    assert "the limit is 1344 to 1" in response.json()["message"]  # 4 crops of 336 pixels
