"""Traces as a collector gets them from a live server: what a span says, and what it never does."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.peers.collector import Collector, attributes, collecting
from tests.support.servers.faulty_server import DECODE, PREFILL
from tests.support.servers.live_server import API_KEY, ROOT, LiveServer, check_log, start_server
from tests.support.servers.wire import AUTHORIZED, chat, data_url, image_message, png

OPENAI = "/v1/chat/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "xylophone-4711"
BODY = {"max_tokens": 5, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def traced(tiny: Path, collector: Collector) -> Iterator[LiveServer]:
    """A server that sends spans soon, and fails where it is told to."""
    program = ("-m", "tests.support.servers.faulty_server")
    flags = ("--model", str(tiny), "--dtype", "float32", "--api-key", API_KEY)
    live = start_server(
        *(*flags, "--otlp-endpoint", collector.url),
        program=program,
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    yield live
    assert live.stop() == 0


def ask(live: LiveServer, name: str, path: str = OPENAI, **more: Any) -> httpx2.Response:
    headers = {"x-request-id": name, **more.pop("headers", {})}
    return chat(live, path, headers=headers, **{**BODY, **more})


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_span_says_of_an_answer(
    traced: LiveServer, collector: Collector, stream: bool
) -> None:
    usage = ask(traced, f"usage-{stream}").json()["usage"]
    before, name = time.time_ns(), f"answer-{stream}"
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=some"}
    answer = ask(traced, name, stream=stream, headers=headers, n=2)
    after = time.time_ns()
    span = collector.span(name)
    assert (span.name, span.kind) == (f"POST {OPENAI}", Span.SPAN_KIND_SERVER)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.trace_state == "vendor=some"
    assert before < span.start_time_unix_nano < span.end_time_unix_nano
    assert span.start_time_unix_nano < after
    assert span.status.code == Status.STATUS_CODE_UNSET
    found = attributes(span)
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert 0 < found.pop("gen_ai.latency.time_to_first_token") < seconds < 60
    assert found.pop("gen_ai.response.id") in answer.text
    assert found == {
        "gen_ai.request.id": name,
        "http.request.method": "POST",
        "http.route": OPENAI,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "phi3v-server",
        "gen_ai.response.model": "phi3v-tiny",
        "gen_ai.response.finish_reasons": ["length", "length"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    assert collector.services == {"phi3v-server"}


def test_spans_without_a_parent_are_of_traces_of_their_own(
    traced: LiveServer, collector: Collector
) -> None:
    for name, parent in (("none", {}), ("nonsense", {"traceparent": f"00-{TRACE}-{SECRET}-01"})):
        ask(traced, name, headers=parent)
        span = collector.span(name)
        assert span.parent_span_id == b""
        assert span.trace_id.hex() not in ("", TRACE)


def test_who_sends_traceparent_decides_what_is_sampled(
    traced: LiveServer, collector: Collector
) -> None:
    ask(traced, "not sampled", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    ask(traced, "sampled")
    collector.span("sampled")  # spans come in the order in which they end
    assert "not sampled" not in collector.spans


def test_requests_that_come_to_nothing(traced: LiveServer, collector: Collector) -> None:
    assert ask(traced, "refused", messages=[]).status_code == 422
    assert ask(traced, "nowhere", f"/{SECRET}").status_code == 404
    assert ask(traced, "failed", seed=PREFILL).status_code == 500
    with pytest.raises(httpx2.RemoteProtocolError):
        ask(traced, "broken off", seed=DECODE, stream=True)
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 7000, "stream": True}
    headers = {**AUTHORIZED, "x-request-id": "left"}
    with httpx2.stream("POST", traced.url + OPENAI, json=body, headers=headers) as response:
        next(response.iter_lines())
    for name, route, status, error, failed in (
        ("refused", OPENAI, 422, "invalid_parameter", False),
        ("nowhere", "unmatched", 404, "not_found", False),
        ("failed", OPENAI, 500, "internal_error", True),
        ("broken off", OPENAI, 200, "internal_error", True),
        ("left", OPENAI, 200, None, False),
    ):
        span = collector.span(name)
        found = attributes(span)
        assert (found["http.route"], found["http.response.status_code"]) == (route, status)
        assert found.get("error.type") == error
        assert (span.status.code == Status.STATUS_CODE_ERROR) == failed
        assert span.status.message == ""
        assert not span.events
    assert attributes(collector.span("left"))["gen_ai.response.finish_reasons"] == ["abort"]


def test_no_content_in_spans(traced: LiveServer, collector: Collector) -> None:
    image = data_url(png(40, 30))
    forced = ask(traced, "c1", guided_choice=[SECRET], max_tokens=40, ignore_eos=False)
    assert forced.json()["choices"][0]["message"]["content"] == SECRET
    ask(traced, "c2", messages=[{"role": "user", "content": SECRET}], stream=True)
    ask(traced, "c3", messages=image_message(image))
    ask(traced, "c4", messages=[{"role": SECRET, "content": SECRET}])
    ask(traced, "c5", user=SECRET, metadata={"key": SECRET}, model=SECRET, stop=[SECRET])
    ask(traced, "c6", f"/openai/deployments/{SECRET}/chat/completions?api-version={SECRET}")
    ask(traced, "c7", headers={"api-key": SECRET, "authorization": "", "cookie": SECRET})
    ask(traced, "c8", headers={"baggage": f"user={SECRET}", "user-agent": SECRET})
    for number in range(1, 9):
        collector.span(f"c{number}")
    sent = b"".join(collector.raw)
    for word in (SECRET, API_KEY, image[40:80], "/secret/path", "hello"):
        assert word.encode() not in sent


def test_the_last_spans_wait_for_no_schedule(tiny: Path) -> None:
    with collecting() as collector:
        flags = ("--model", str(tiny), "--otlp-endpoint", collector.url)
        live = start_server(*flags, OTEL_BSP_SCHEDULE_DELAY="600000")
        assert ask(live, "the last one").status_code == 200
        assert not collector.spans
        assert live.stop() == 0
        assert set(collector.spans) == {"the last one"}
    check_log("".join(live.log))


@pytest.mark.slow  # it is waited for at the end
def test_a_collector_that_is_down_is_in_nobodys_way(tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        flags = ("--model", str(tiny), "--otlp-endpoint")
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        live = start_server(*flags, endpoint, OTEL_BSP_SCHEDULE_DELAY="100")
        assert all(ask(live, str(i)).status_code == 200 for i in range(3))
        listener.accept()[0].close()  # it sends, and will again to nobody
    started = time.monotonic()
    assert live.stop() == 0
    assert time.monotonic() - started < 30
    check_log("".join(live.log))


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter"])
def test_without_the_extra_the_server_says_so(tiny: Path, missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import server.cli; sys.exit(server.cli.main())"
    flags = ["--model", str(tiny), "--port", "0", "--otlp-endpoint", "http://127.0.0.1:9"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert done.stderr.startswith("phi3v-server: --otlp-endpoint needs the extra otel")
    assert "scripts/setup otel" in done.stderr
    assert done.stderr.count("\n") == 1
