"""The application on two replicas by Ray Serve, through Ray's proxy, as clients see it."""

from __future__ import annotations

import re
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from tests.ray.ray_server import (
    CHANGE,
    answering,
    busy,
    replicas,
    start_ray_server,
    text_of,
    until_idle,
)
from tests.ray.streams import GREEDY, Stream, begin
from tests.support.peers.collector import Collector, attributes
from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.wire import AUTHORIZED, HELLO, chat, check_error, data_url, png
from tests.support.waiting import eventually

# Ray takes a minute to start, and more on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPLICAS, ONGOING, QUEUED = 2, 2, 2
NEXT_NAME = "phi3v-next"  # as tests.ray.cluster deploys it anew
ORIGIN = "https://page.example"


@pytest.fixture(scope="module")
def ray_server(tiny: Path, collector: Collector) -> Iterator[LiveServer]:
    live = start_ray_server(
        tiny,
        MIN_REPLICAS=str(REPLICAS),
        MAX_SURGE_PERCENT="50",
        ONGOING_REQUESTS=str(ONGOING),
        QUEUED_REQUESTS=str(QUEUED),
        ALLOWED_ORIGINS=ORIGIN,
        OTLP_ENDPOINT=collector.url,
    )
    yield live
    assert live.stop() == 0


def test_answers_and_streams_pass_ray_unchanged(ray_server: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{ray_server.url}/v1", api_key=API_KEY) as client:
        arguments: Any = {"model": "any", "messages": HELLO, "max_tokens": 4000, "temperature": 0}
        arguments["extra_body"] = {"ignore_eos": True}
        whole = client.chat.completions.create(**arguments)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 4000
        chunks = iter(client.chat.completions.create(**arguments, stream=True))
        came = [next(chunks)]
        assert busy(ray_server)  # it comes as it is made, and not at its end
        came += chunks
    text = "".join(chunk.choices[0].delta.content or "" for chunk in came)
    assert text == whole.choices[0].message.content
    stream = Stream(ray_server, max_tokens=5)
    stream.join()
    assert stream.answer is not None
    assert stream.answer.headers["content-type"].startswith("text/event-stream")
    assert stream.end == "done"


def test_errors_and_other_routes_are_the_servers_own(ray_server: LiveServer) -> None:
    refused = chat(ray_server, temperature=9)
    check_error(refused, 422, "invalid_parameter", ["temperature"])
    named = chat(ray_server, headers={"x-request-id": "mine"})
    assert named.headers.get_list("x-request-id") == ["mine"]
    nobody = chat(ray_server, headers={"Authorization": "Bearer wrong"})
    check_error(nobody, 401, "Unauthorized", [])
    large = httpx2.post(
        f"{ray_server.url}/chat/completions", content=b" " * 33_000_000, headers=AUTHORIZED
    )
    check_error(large, 413, "request_too_large", [])
    assert httpx2.get(f"{ray_server.url}/health").json() == {"status": "ready"}
    assert httpx2.get(f"{ray_server.url}/info", headers=AUTHORIZED).status_code == 200


def test_nobody_waits_for_a_body_of_nobody(ray_server: LiveServer) -> None:
    address = ray_server.url.removeprefix("http://")
    head = f"POST /chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: 9\r\n"
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_traces_are_left_of_answers(ray_server: LiveServer, collector: Collector) -> None:
    answer = chat(ray_server, headers={"x-request-id": "traced"})
    made = attributes(collector.span("traced"))["gen_ai.usage.output_tokens"]
    assert made == answer.json()["usage"]["completion_tokens"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(ray_server: LiveServer, stream: bool) -> None:
    name = f"goes-away-{stream}".lower()
    tokens, n = 8000, 8  # more than is answered until the client gives up
    body = {"messages": HELLO, "max_tokens": tokens, "n": n, "stream": stream, **GREEDY}
    url, headers = f"{ray_server.url}/v1/chat/completions", AUTHORIZED | {"x-request-id": name}
    if stream:
        with httpx2.stream("POST", url, json=body, headers=headers) as answer:
            next(answer.iter_lines())
    else:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(url, json=body, headers=headers, timeout=2.0)
    log = eventually(lambda: [line for line in ray_server.log if f"request_id={name}" in line])
    made = re.search(r"completion_tokens=(\d+)", log[0])
    assert made is not None, log
    assert int(made[1]) < n * (tokens - 1000)
    until_idle(ray_server)


def test_too_many_are_refused_in_the_apis_words(ray_server: LiveServer) -> None:
    until_idle(ray_server)
    streams = begin(ray_server, REPLICAS * ONGOING, max_tokens=6000)
    streams += [Stream(ray_server, max_tokens=6000) for _ in range(12)]
    for stream in streams:
        stream.join()
    ends = [stream.end for stream in streams]
    assert set(ends) == {"done", "refused"}
    assert ends.count("done") == REPLICAS * ONGOING + QUEUED
    assert len({stream.text for stream in streams if stream.end == "done"}) == 1
    for stream in streams:
        if stream.end == "refused":
            answer = stream.answer
            assert answer is not None
            assert answer.headers.pop("retry-after") == "1"
            check_error(answer, 429, "too_many_requests", [])
    assert len(text_of(chat(ray_server))) > 0


def test_what_is_no_post_needs_no_slot(ray_server: LiveServer) -> None:
    until_idle(ray_server)
    streams = begin(ray_server, REPLICAS * ONGOING, max_tokens=6000)
    queued = [Stream(ray_server, max_tokens=3) for _ in range(QUEUED + 1)]
    eventually(lambda: [stream for stream in queued if stream.end == "refused"])  # it is full
    streams += [stream for stream in queued if not stream.end]
    page = {"origin": ORIGIN}
    with httpx2.Client(base_url=ray_server.url, headers=AUTHORIZED | page, timeout=5) as client:
        for _ in range(3):
            for path in ("/health/ready", "/metrics", "/info", "/"):
                answer = client.get(path)
                assert answer.status_code == 200
                assert answer.headers["access-control-allow-origin"] == ORIGIN
                assert answer.headers["vary"].lower().count("origin") == 1
        asks = {"access-control-request-method": "POST"}
        assert client.options("/chat/completions", headers=asks).status_code == 200
    ids = {"x-request-id": "one-too-many", "x-ms-client-request-id": "mine"}
    refused = chat(ray_server, headers=page | ids)
    assert refused.headers.pop("retry-after") == "1"
    check_error(refused, 429, "too_many_requests", [])
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    assert refused.headers["x-ms-client-request-id"] == "mine"
    assert refused.headers.get_list("x-request-id") == ["one-too-many"]
    assert len(streams) == REPLICAS * ONGOING + QUEUED
    assert not any(stream.end for stream in streams)
    for stream in streams:
        stream.join()
    assert {stream.end for stream in streams} == {"done"}
    (line,) = eventually(lambda: [each for each in ray_server.log if "one-too-many" in each])
    assert "caller=api-key" in line
    assert "status=429" in line


def test_conversations_find_their_beginning_cached(ray_server: LiveServer) -> None:
    """Beside what the same conversations find at replicas of chance.

    Those write their images' URLs differently in every turn, which changes where a turn goes and
    nothing in its prompt.
    """
    ratios = {}
    for arm, scattered in (("alike", False), ("scattered", True)):
        cached = prompt = 0
        for number in range(10):
            picture = png(50 + number, 80 if scattered else 60)
            history: list[dict[str, Any]] = []
            for turn in range(4):
                media = f"image/png;turn={turn}" if scattered else "image/png"
                url = {"type": "image_url", "image_url": {"url": data_url(picture, media)}}
                text = {"type": "text", "text": f"question {turn}"}
                question: dict[str, Any] = {"role": "user", "content": [text]}
                messages = [*history, question]
                messages[0] = {"role": "user", "content": [url, *messages[0]["content"][-1:]]}
                answer = chat(ray_server, messages=messages, max_tokens=1)
                usage = answer.json()["usage"]
                cached += usage["prompt_tokens_details"]["cached_tokens"]
                prompt += usage["prompt_tokens"]
                history += [question, {"role": "assistant", "content": f"answer {turn}"}]
        ratios[arm] = cached / prompt
    sys.stdout.write(f"cached of all prompt tokens, on {REPLICAS} replicas: {ratios}\n")
    assert ratios["alike"] > 0.65  # three turns of four, but for what is new in each
    assert ratios["alike"] > ratios["scattered"] + 0.05


def test_a_replica_that_is_killed_takes_its_own_answers_along(ray_server: LiveServer) -> None:
    until_idle(ray_server)
    right = text_of(chat(ray_server, "/v1/chat/completions", max_tokens=5000, **GREEDY))
    streams = begin(ray_server, REPLICAS * ONGOING, max_tokens=5000)
    victim = replicas(ray_server)[0]
    helpers = victim.children(recursive=True)
    assert helpers  # which decode images
    victim.kill()

    def ask_again() -> str:
        """As clients do, which try again at these."""

        def ask() -> httpx2.Response | None:
            answer = chat(ray_server, "/v1/chat/completions", max_tokens=20, **GREEDY)
            return None if answer.status_code in (429, 503) else answer

        return text_of(eventually(ask, seconds=100))

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask_again) for _ in range(6)]
    assert all(len(answer.result()) > 0 and right.startswith(answer.result()) for answer in asked)
    for stream in streams:
        stream.join()
    assert sorted(stream.end for stream in streams) == ["broken off"] * ONGOING + ["done"] * ONGOING
    for stream in streams:
        assert right.startswith(stream.text)
        assert (stream.text == right) == (stream.end == "done")
        if stream.end == "broken off":
            assert (stream.error["status"], stream.error["code"]) == (503, "overloaded")
    eventually(
        lambda: len({process.pid for process in replicas(ray_server)} - {victim.pid}) == REPLICAS,
        CHANGE,
    )
    eventually(lambda: not any(map(psutil.Process.is_running, helpers)))


def test_a_new_version_drops_no_stream(ray_server: LiveServer) -> None:
    eventually(lambda: len(answering(ray_server)) == REPLICAS, CHANGE)
    until_idle(ray_server)
    before = {process.pid for process in replicas(ray_server)}
    streams = begin(ray_server, REPLICAS, max_tokens=8000)
    ray_server.process.send_signal(signal.SIGUSR1)
    names: list[str] = []

    def deployed() -> bool:
        """And whoever asks meanwhile is answered."""
        answer = chat(ray_server)
        text_of(answer)
        names.append(answer.json()["model"])
        return any(line.startswith("deployed anew") for line in ray_server.log)

    eventually(deployed, CHANGE)
    assert names[0] == "phi3v-tiny"
    assert chat(ray_server).json()["model"] == NEXT_NAME
    for stream in streams:
        stream.join()
    assert [stream.end for stream in streams] == ["done"] * REPLICAS
    assert [line for line in ray_server.log if re.search(r"to shut down: \d+ ongoing", line)]
    assert len({stream.text for stream in streams}) == 1
    eventually(lambda: not before & {process.pid for process in replicas(ray_server)}, CHANGE)
