"""Faults of the engine as clients see them: a clear end, and a server that goes on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from tests.support.servers.faulty_server import DECODE, KILL, MEMORY, PREFILL, SECRET
from tests.support.servers.live_server import (
    API_KEY,
    ROOT,
    LiveServer,
    check_log,
    faults,
    start_server,
)
from tests.support.servers.wire import AUTHORIZED, HELLO, check_error
from tests.support.waiting import eventually

FAULT = [{"role": "user", "content": "FAULT"}]
BODY = {"messages": HELLO, "max_tokens": 40, "ignore_eos": True, "temperature": 0}


FAULTY = ("-m", "tests.support.servers.faulty_server")


def start(tiny: Path, style: str = "text") -> LiveServer:
    flags = ("--model", str(tiny), "--dtype", "float32", "--api-key", API_KEY)
    return start_server(*flags, "--log-format", style, program=FAULTY)


@pytest.fixture(scope="module")
def faulty(tiny: Path) -> Iterator[LiveServer]:
    live = start(tiny)
    yield live
    assert live.stop() == 0


def ask(server: LiveServer, **more: Any) -> httpx2.Response:
    url = f"{server.url}/v1/chat/completions"
    return httpx2.post(url, json=BODY | more, headers=AUTHORIZED, timeout=60)


def read_stream(server: LiveServer, lines: list[str], **more: Any) -> None:
    """The lines of a stream, as far as it comes."""
    url, body = f"{server.url}/v1/chat/completions", BODY | {"stream": True} | more
    try:
        with httpx2.stream("POST", url, json=body, headers=AUTHORIZED, timeout=60) as response:
            lines.extend(line for line in response.iter_lines() if line)
    except httpx2.RemoteProtocolError:
        lines.append("broken off")


@pytest.mark.parametrize("seed", [PREFILL, DECODE, MEMORY])
def test_faults_end_one_answer(faulty: LiveServer, seed: int) -> None:
    alone = ask(faulty).json()["choices"][0]["message"]["content"]
    process = psutil.Process(faulty.process.pid)
    threads, files = process.num_threads(), process.num_fds()
    neighbour: list[str] = []
    reader = threading.Thread(target=read_stream, args=(faulty, neighbour), kwargs=BODY)
    reader.start()
    for _ in range(3):
        response = ask(faulty, seed=seed)
        check_error(response, 500, "internal_error", [])
        assert SECRET not in response.text
        assert "Traceback" not in response.text
        lines: list[str] = []
        read_stream(faulty, lines, seed=seed)
        assert lines[-1] == "broken off"
        error = json.loads(lines[-2].removeprefix("data: "))["error"]
        assert (error["status"], error["code"]) == (500, "internal_error")
        assert SECRET not in "".join(lines)
    reader.join()
    assert neighbour[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in neighbour[:-1]]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == alone
    assert httpx2.get(f"{faulty.url}/health").json() == {"status": "ready"}
    metrics = httpx2.get(f"{faulty.url}/metrics", headers=AUTHORIZED).text
    used = next(line for line in metrics.splitlines() if "blocks_used" in line and line[0] != "#")
    assert float(used.split()[-1]) == 0
    eventually(lambda: process.num_threads() <= threads + 2 and process.num_fds() <= files)


def test_a_failed_response_says_so(faulty: LiveServer) -> None:
    body = {"input": "hello", "max_output_tokens": 40, "ignore_eos": True, "seed": DECODE}
    url = f"{faulty.url}/v1/responses"
    response = httpx2.post(url, json=body, headers=AUTHORIZED, timeout=60)
    check_error(response, 500, "internal_error", [])
    with openai.OpenAI(base_url=f"{faulty.url}/v1", api_key=API_KEY, max_retries=0) as client:
        asked: Any = {"model": "any", "input": "hello", "max_output_tokens": 40}
        extra = {"ignore_eos": True, "seed": DECODE}
        events = list(client.responses.create(**asked, extra_body=extra, stream=True))
        last = events[-1]
        assert last.type == "response.failed"
        assert [event.sequence_number for event in events] == list(range(len(events)))
        failed = last.response
        assert failed.status == "failed"
        assert failed.error is not None
        assert (failed.error.code, SECRET in failed.error.message) == ("server_error", False)
        assert failed.output_text == "".join(getattr(event, "delta", "") for event in events)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(failed.id)
        assert client.responses.create(**asked).status == "incomplete"


def test_a_fault_in_the_preparation(faulty: LiveServer) -> None:
    response = ask(faulty, messages=FAULT)
    check_error(response, 500, "internal_error", [])
    assert SECRET not in response.text
    assert ask(faulty).status_code == 200


def test_a_killed_engine_leaves_nobody_waiting(tiny: Path) -> None:
    """Those who ask are told, then the server ends, for whoever watches it to start it anew."""
    live = start(tiny)
    lines: list[str] = []
    more = {"max_tokens": 6000}
    reader = threading.Thread(target=read_stream, args=(live, lines), kwargs=more)
    reader.start()
    eventually(lambda: lines)
    response = ask(live, seed=KILL)
    assert (response.status_code, response.json()["code"]) == (503, "engine_dead")
    assert SECRET not in response.text
    states = []

    def has_ended() -> bool:
        try:
            health = httpx2.get(f"{live.url}/health/live")
        except httpx2.TransportError:
            return True
        states.append((health.status_code, health.json()["status"]))
        return False

    with contextlib.suppress(httpx2.TransportError):
        refused = ask(live)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    eventually(has_ended)
    assert states
    assert set(states) == {(503, "dead")}
    reader.join(60)
    assert lines[-1] == "broken off"
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert live.process.wait(60) == 1
    (said,) = [line for line in live.log if line.startswith("phi3v-server: ")]
    assert "the engine has failed; exiting" in said
    check_log("".join(live.log), ["the engine thread failed"])


@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_fault_in_loading_ends_in_one_sentence(tiny: Path, level: str) -> None:
    done = subprocess.run(
        [sys.executable, *FAULTY, "--port", "0", "--model", str(tiny), "--log-level", level],
        cwd=ROOT,
        env={**os.environ, "FAULTY_LOADING": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("phi3v-server: ")]
    assert "the model cannot be loaded: RuntimeError: first line; pass --log-level debug" in said
    assert ("Traceback" in done.stderr) == (SECRET in done.stderr) == (level == "debug")


@pytest.mark.parametrize("style", ["text", pytest.param("json", marks=pytest.mark.slow)])
def test_a_fault_is_seen_in_the_log(tiny: Path, style: str) -> None:
    """What other tests look for in logs that should tell of none."""
    live = start(tiny, style)
    try:
        assert ask(live).status_code == 200
        ask(live, messages=[])
        check_log("".join(live.log))
        ask(live, seed=PREFILL)
        ask(live, messages=FAULT)
    finally:
        assert live.stop() == 0
    log = "".join(live.log)
    found = faults(log)
    assert len(found) == 2, log
    assert all("faulty_server.py" in each for each in found)
    step, preparation = "a step of 1 sequence failed", "Exception in ASGI application"
    check_log(log, [step, preparation])
    with pytest.raises(AssertionError, match=preparation):
        check_log(log, [step])
