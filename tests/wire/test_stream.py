"""The bytes of a stream, what happens when readers leave, and the server's own state."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.servers.live_server import (
    API_KEY,
    START_TIMEOUT,
    LiveServer,
    start_loading,
    start_server,
)
from tests.support.servers.raw import connection, up_to
from tests.support.waiting import eventually

HEADERS = {"api-key": API_KEY}
HELLO: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "ignore_eos": True,
}


def test_the_bytes_of_a_stream(server: LiveServer) -> None:
    """Each line is ``data: ...`` or empty and ends in a bare line feed; fields as in the seed."""
    body = {**HELLO, "stream": True, "max_tokens": 5}
    response = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers=HEADERS)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] in ("no-store", "no-cache")
    assert response.headers["x-accel-buffering"] == "no"
    raw = response.content
    assert b"\r" not in raw
    events = raw.decode().split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events.pop() == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    fields = ["id", "object", "created", "model", "choices"]
    assert [list(chunk) for chunk in chunks[:-1]] == [fields] * (len(chunks) - 1)
    assert list(chunks[-1]) == [*fields, "usage"]
    assert len(chunks[0]["id"]) == 32
    choices = [chunk["choices"][0] for chunk in chunks]
    assert all(
        list(choice) == ["index", "delta", "finish_reason", "logprobs"] for choice in choices
    )
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(list(choice["delta"]) == ["content"] for choice in choices[1:])
    assert choices[-1]["delta"] == {"content": ""}
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(chunks) - 1)
    assert choices[-1]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 5


def test_the_fields_of_an_answer(server: LiveServer) -> None:
    body = {**HELLO, "max_tokens": 5}
    answer = httpx2.post(
        f"{server.url}/v1/chat/completions?api-version=2024-05-01-preview",
        json=body,
        headers=HEADERS,
    ).json()
    assert list(answer) == ["id", "object", "created", "model", "choices", "usage"]
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert list(choice) == ["index", "message", "finish_reason", "logprobs"]
    assert list(choice["message"]) == ["role", "content", "tool_calls"]
    assert (choice["message"]["tool_calls"], choice["logprobs"]) == (None, None)
    assert answer["usage"].keys() == {
        *("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details")
    }


def numbers(server: LiveServer) -> tuple[float, float]:
    """Answers that run, and tokens of all that ran."""
    text = httpx2.get(f"{server.url}/metrics", headers=HEADERS).text
    running, made = (
        float(re.findall(rf"^phi3v_{name} (\S+)$", text, re.MULTILINE)[0])
        for name in ("num_requests_running", "generation_tokens_total")
    )
    return running, made


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_ends_the_work(server: LiveServer, stream: bool) -> None:
    """A client that disconnects, streaming or waiting for the whole, stops the computation."""
    eventually(lambda: numbers(server)[0] == 0)
    _, before = numbers(server)
    name = f"leaves-{stream}"
    body = json.dumps({**HELLO, "stream": stream, "max_tokens": 7000}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\napi-key: {API_KEY}\r\n"
        f"x-request-id: {name}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with connection(server, head.encode() + body) as made:
        eventually(lambda: numbers(server)[1] > before)
        if stream:
            assert made.recv(1000).startswith(b"HTTP/1.1 200")
    eventually(lambda: numbers(server)[0] == 0)
    assert numbers(server)[1] < before + 7000  # it does not rest because it has done it all
    mark = f"request_id={name} "
    (line,) = eventually(lambda: [line for line in server.log if mark in line])
    tokens = re.search(r" completion_tokens=(\d+)", line)
    assert tokens is not None, line
    assert int(tokens[1]) < 7000


def test_leaving_in_the_middle_of_the_body(server: LiveServer) -> None:
    """Nothing to answer and nobody to answer to; the server's log stays clean (see its fixture)."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\napi-key: {API_KEY}\r\n"
        "Content-Type: application/json\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n"
    )
    with connection(server, head.encode()) as made:
        assert up_to(made, b"\r\n\r\n").startswith(b"HTTP/1.1 100")  # it reads
        made.sendall(b'{"messages')
    assert httpx2.get(f"{server.url}/health").status_code == 200


def test_too_many_requests_are_told_to_come_back(tiny: Path) -> None:
    live = start_server("--model", str(tiny), "--max-num-seqs", "1", "--max-waiting", "1")
    try:
        url = f"{live.url}/v1/chat/completions"
        body = {**HELLO, "stream": True, "max_tokens": 5000}
        with httpx2.stream("POST", url, json=body) as first:
            assert first.status_code == 200
            with httpx2.stream("POST", url, json=body) as second:
                assert second.status_code == 200
                third = httpx2.post(url, json=body)
                assert third.status_code == 429
                assert third.headers["retry-after"] == "1"
                assert third.json()["error"]["code"] == "too_many_requests"
        short = {**HELLO, "max_tokens": 1}
        eventually(lambda: httpx2.post(url, json=short).status_code == 200)
    finally:
        assert live.stop() == 0


def test_health(server: LiveServer) -> None:
    response = httpx2.get(f"{server.url}/health")  # without a key
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


def test_loading_is_a_state(tiny: Path, tmp_path: Path) -> None:
    """The server listens before its model is there, says so, and is not ready."""
    live, pipe = start_loading(tiny, tmp_path)
    try:
        health = httpx2.get(f"{live.url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        for response in (
            httpx2.post(f"{live.url}/v1/chat/completions", json=HELLO),
            httpx2.get(f"{live.url}/info"),
        ):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
        pipe.write_bytes((tiny / "tokenizer.json").read_bytes())
        eventually(lambda: httpx2.get(f"{live.url}/health").status_code == 200, START_TIMEOUT)
    finally:
        status = live.stop()
    assert status == 0
