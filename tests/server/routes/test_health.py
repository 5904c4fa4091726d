"""Whether the server lives and is ready, and what becomes of its streams when it is told to end."""

from __future__ import annotations

import asyncio
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

import model
from server.app import create_app
from server.service import Service
from server.settings import Settings
from tests.support.servers.live_server import LiveServer, check_log, start_server
from tests.support.waiting import eventually

STREAMS = 16
TOKENS = 1000  # of each, so that they last longer than what is asked beside them
LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
}


def health(url: str, which: str) -> tuple[int, str, str | None]:
    response = httpx2.get(f"{url}/health{which}")
    return response.status_code, response.json()["status"], response.headers.get("retry-after")


def test_ready_and_live(server: LiveServer) -> None:
    assert [health(server.url, which) for which in ("", "/ready", "/live")] == [
        (200, "ready", None)
    ] * 3


def load_a_stand_in(service: Service, alive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load it as ever, but for the model; images have no decoder here."""

    async def load_engine(options: object) -> tuple[Any, model.ModelInfo]:
        engine = SimpleNamespace(is_alive=alive, longest_ratio=1.0, stats=lambda: None)
        return engine, model.ModelInfo("stand-in", "tests")

    monkeypatch.setattr(model, "load_engine", load_engine)
    monkeypatch.setattr(service.decode_pool, "start", lambda: None)
    asyncio.run(service.load())


@pytest.mark.parametrize(
    ("alive", "state", "live"),
    [(None, "loading", 200), (True, "draining", 200), (False, "dead", 503)],
)
def test_states_that_take_no_requests(
    monkeypatch: pytest.MonkeyPatch, alive: bool | None, state: str, live: int
) -> None:
    """An engine that is dead cannot be had at will: the engine is a stand-in."""
    service = Service(Settings(_cli_parse_args=[]))
    if alive is not None:
        load_a_stand_in(service, alive, monkeypatch)
    service.drain()

    async def ask(path: str) -> httpx2.Response:
        transport = httpx2.ASGITransport(create_app(service))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    for path, status in (("/health", 503), ("/health/ready", 503), ("/health/live", live)):
        response = asyncio.run(ask(path))
        assert (response.status_code, response.json()) == (status, {"status": state})
        assert response.headers.get("retry-after") == ("1" if status == 503 else None)


def read(url: str, tokens: int, begun: threading.Semaphore | None = None) -> list[str]:
    """The lines of a stream."""
    lines: list[str] = []
    body = {**LONG, "max_tokens": tokens}
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=120) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if not lines and begun is not None:
                begun.release()
            lines += [line] if line else []
    return lines


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_all_streams_are_finished_and_nothing_new_is_begun(
    tiny: Path, number: signal.Signals
) -> None:
    live = start_server("--model", str(tiny), "--drain-timeout", "120")
    begun = threading.Semaphore(0)
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(read, live.url, TOKENS, begun) for _ in range(STREAMS)]
        for _ in streams:
            assert begun.acquire(timeout=60)
        live.process.send_signal(number)
        eventually(lambda: health(live.url, "/ready")[0] != 200)
        assert health(live.url, "/ready") == (503, "draining", "1")
        assert health(live.url, "/live") == (200, "draining", None)
        refused = httpx2.post(f"{live.url}/v1/chat/completions", json=LONG)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert not any(stream.done() for stream in streams)
        for stream in streams:
            lines = stream.result(120)
            assert lines[-1] == "data: [DONE]"
            assert f'"completion_tokens":{TOKENS}' in lines[-2]
    assert live.process.wait(100) == 0
    check_log("".join(live.log))


def test_a_killed_server_can_be_started_again_on_its_port(tiny: Path) -> None:
    first = start_server("--model", str(tiny))
    port = first.url.rsplit(":", 1)[1]
    begun = threading.Semaphore(0)
    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(read, first.url, 8000, begun) for _ in range(STREAMS)]
        for _ in streams:
            assert begun.acquire(timeout=60)
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
        second = start_server("--model", str(tiny), "--port", port)
        try:
            for stream in streams:  # no client takes half an answer for a whole one
                with pytest.raises(httpx2.TransportError):
                    stream.result(60)
            assert second.url == first.url
            assert read(second.url, 5)[-1] == "data: [DONE]"
        finally:
            assert second.stop() == 0
