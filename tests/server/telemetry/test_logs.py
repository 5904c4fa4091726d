"""What the log holds, what it never holds, and that it is in nobody's way."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import httpx2
import pytest
from PIL import Image, PngImagePlugin

from server.telemetry.logs import JsonFormatter, TextFormatter
from tests.support.servers.live_server import API_KEY, ROOT, START_TIMEOUT, LiveServer, start_server
from tests.support.servers.wire import AUTHORIZED, chat, data_url, image_message
from tests.support.waiting import eventually

SECRET = "xylophone-4711"
WORDS = "out of memory"
LENGTHS = {"max_tokens": 5, "ignore_eos": True, "temperature": 0}
OPENAI = "/v1/chat/completions"


@pytest.fixture(scope="module")
def talkative(tiny: Path) -> Iterator[LiveServer]:
    """A server that says all it can say, as JSON."""
    flags = ("--log-format", "json", "--log-level", "debug", "--api-key", API_KEY)
    live = start_server("--model", str(tiny), "--dtype", "float32", *flags)
    yield live
    assert live.stop() == 0


def entries(live: LiveServer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in live.log]


def entry(live: LiveServer, request_id: str) -> dict[str, Any]:
    """The one line of a request."""
    (found,) = eventually(
        lambda: [e for e in entries(live) if e.get("request_id") == request_id],
        what=f"{request_id} is logged",
    )
    return found


def ask(live: LiveServer, request_id: str, **body: Any) -> httpx2.Response:
    return chat(live, OPENAI, headers={"x-request-id": request_id}, **{**LENGTHS, **body})


@pytest.mark.parametrize("stream", [False, True])
def test_one_line_says_what_an_answer_took(talkative: LiveServer, stream: bool) -> None:
    usage = ask(talkative, f"usage-{stream}").json()["usage"]
    ask(talkative, f"answer-{stream}", stream=stream)
    found = entry(talkative, f"answer-{stream}")
    first, total = found.pop("time_to_first_token_seconds"), found.pop("total_seconds")
    assert 0 < first < total < 60
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "info",
        "logger": "server.http.access_log",
        "message": "request",
        "request_id": f"answer-{stream}",
        "caller": "api-key",
        "method": "POST",
        "path": OPENAI,
        "status": 200,
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": 5,
        "cached_tokens": 0,
        "finish_reason": "length",
    }


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/nowhere/at/all", b"", 404, "not_found"),
        ("GET", OPENAI, b"", 405, "method_not_allowed"),
        ("POST", OPENAI, b"{", 400, "invalid_json"),
        ("POST", OPENAI, b"{}", 422, "invalid_parameter"),
        ("HEAD", "/info", b"", 200, None),
        ("OPTIONS", "/info", b"", 204, None),
    ],
)
def test_what_is_refused_has_its_line_too(
    talkative: LiveServer, method: str, path: str, content: bytes, status: int, code: str | None
) -> None:
    name = f"refused-{method}-{status}"
    headers = {**AUTHORIZED, "x-request-id": name}
    httpx2.request(method, talkative.url + path, content=content, headers=headers)
    found = entry(talkative, name)
    assert (found["method"], found["path"], found["status"]) == (method, path, status)
    assert found.get("error_code") == code
    assert "prompt_tokens" not in found


def test_who_leaves_is_logged_as_that(talkative: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 7000, "stream": True}
    headers = {**AUTHORIZED, "x-request-id": "leaves"}
    with httpx2.stream(
        "POST", talkative.url + OPENAI, json={**body, "ignore_eos": True}, headers=headers
    ) as response:
        next(response.iter_lines())
    found = entry(talkative, "leaves")
    assert (found["status"], found["finish_reason"]) == (200, "abort")
    assert found["completion_tokens"] < 7000


def picture_of_a_secret() -> bytes:
    file, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("Comment", SECRET)
    Image.new("L", (32, 32)).save(file, "PNG", pnginfo=info)
    assert SECRET.encode() in file.getvalue()
    return file.getvalue()


def test_no_content_in_logs_metrics_or_the_errors_of_others(talkative: LiveServer) -> None:
    """Not even in the debug log: texts, pictures, keys and query strings."""
    image = data_url(picture_of_a_secret())
    asked = [
        ask(talkative, "s1", messages=[{"role": "user", "content": SECRET}]),
        ask(talkative, "s2", messages=[{"role": "user", "content": SECRET}], stream=True),
        ask(talkative, "s3", messages=image_message(image)),
        ask(talkative, "s4", messages=image_message(image[:-20] + SECRET)),
        ask(talkative, "s5", messages=[{"role": SECRET, "content": SECRET}]),
        ask(talkative, "s6", **{SECRET: SECRET}),
        ask(talkative, "s7", stop=[SECRET]),
        ask(talkative, "s8", guided_regex=f"({SECRET}", ignore_eos=False),
        ask(talkative, "s9", user=SECRET, metadata={"key": SECRET}),
        chat(talkative, f"{OPENAI}?api-version={SECRET}&key={SECRET}"),
        chat(talkative, headers={"Authorization": f"Bearer {SECRET}"}),
        chat(talkative, headers={"api-key": SECRET, "cookie": SECRET, "referer": SECRET}),
        chat(talkative, headers={"content-type": SECRET}),
    ]
    assert {response.status_code for response in asked} == {200, 401, 415, 422}
    forced = ask(talkative, "s10", guided_choice=[SECRET], max_tokens=40, ignore_eos=False)
    assert forced.json()["choices"][0]["message"]["content"] == SECRET
    entry(talkative, "s10")
    others = [chat(talkative, messages=[]), httpx2.get(f"{talkative.url}/nowhere")]
    metrics = httpx2.get(f"{talkative.url}/metrics", headers=AUTHORIZED)
    for text in ("".join(talkative.log), metrics.text, *(other.text for other in others)):
        assert SECRET not in text
        assert API_KEY not in text
        assert image[40:80] not in text


def test_the_web_servers_lines_have_the_same_form(talkative: LiveServer) -> None:
    host, port = talkative.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{SECRET}\r\n\r\n".encode())
        assert b"400" in connection.recv(1000)
    eventually(lambda: any(e["logger"].startswith("uvicorn") for e in entries(talkative)))
    assert SECRET not in "".join(talkative.log)


def test_errors_hold_no_paths_and_no_traces(talkative: LiveServer) -> None:
    answers = [
        chat(talkative, messages=image_message("data:image/png;base64,AAAA")),
        chat(talkative, messages=image_message("file:///etc/passwd")),
        chat(talkative, response_format={"type": "json_schema", "json_schema": {}}),
        chat(talkative, OPENAI, guided_grammar="start: nothing"),
        chat(talkative, temperature="warm"),
        httpx2.get(f"{talkative.url}/playground/../../etc/passwd"),
    ]
    for answer in answers:
        assert answer.status_code in (404, 422), answer.text
        assert not re.search(r"Traceback|\.py\b|site-packages|\(_\w+\)|0x[0-9a-f]{6}", answer.text)
        assert str(ROOT) not in answer.text


def test_text_is_one_line_whatever_a_client_puts_in(tiny: Path) -> None:
    live = start_server("--model", str(tiny))
    try:
        headers = {"x-request-id": 'a" b=c'}
        httpx2.get(f"{live.url}/two%0Alines%1b[31m?{SECRET}", headers=headers)
        ask(live, "plain")
    finally:
        assert live.stop() == 0
    (line,) = [line for line in live.log if "/two" in line]
    expected = r'request_id="a\" b=c" method=GET path="/two\nlines\u001b[31m" status=404'
    assert f" INFO server.http.access_log: request {expected}" in line
    assert line.endswith("error_code=not_found\n")
    (line,) = [line for line in live.log if "request_id=plain" in line]
    assert re.search(r"completion_tokens=5 .*time_to_first_token_seconds=\d+\.\d{3} ", line)


def test_less_is_logged_when_asked_for(tiny: Path) -> None:
    live = start_server("--model", str(tiny), "--log-level", "warning")
    ask(live, "quiet")
    assert live.stop() == 0
    assert "quiet" not in "".join(live.log)


@contextlib.contextmanager
def served(command: Callable[[int], list[str]], **streams: Any) -> Iterator[LiveServer]:
    """A server whose output nobody reads; it must end with status 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(command(port), cwd=ROOT, **streams) as process:
        live = LiveServer(process, f"http://127.0.0.1:{port}")

        def is_ready() -> bool:
            assert process.poll() is None
            try:
                return httpx2.get(f"{live.url}/health/ready").status_code == 200
            except httpx2.TransportError:  # it listens late
                return False

        try:
            eventually(is_ready, START_TIMEOUT)
            yield live
            assert live.stop() == 0
        finally:
            process.kill()


def arguments(tiny: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "server", "--model", str(tiny), "--port", str(port)]


def check_that_it_answers(live: LiveServer, requests: int) -> None:
    with httpx2.Client() as client:
        for _ in range(requests):
            assert client.get(f"{live.url}/{'x' * 200}").status_code == 404
    assert ask(live, "still").status_code == 200
    assert ask(live, "streaming", stream=True).text.endswith("data: [DONE]\n\n")


def test_a_full_disk_harms_no_request(tiny: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        files: dict[str, BinaryIO] = {"stdout": full, "stderr": full}
        with served(lambda port: arguments(tiny, port), **files) as live:
            check_that_it_answers(live, 20)


def test_closed_streams_harm_no_request(tiny: Path) -> None:
    def closing(port: int) -> list[str]:
        return ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *arguments(tiny, port)]

    with served(closing) as live:
        check_that_it_answers(live, 20)


def test_a_reader_that_has_stopped_harms_no_request(tiny: Path) -> None:
    """More lines than a pipe holds, and nobody at its other end; then the end itself is gone."""
    with served(lambda port: arguments(tiny, port), stderr=subprocess.PIPE) as live:
        check_that_it_answers(live, 600)
        assert live.process.stderr is not None
        live.process.stderr.close()
        check_that_it_answers(live, 20)


def record(name: str, kind: type[Exception] = KeyError) -> logging.LogRecord:
    try:
        try:
            raise ValueError(f"cannot read {SECRET}\n  {SECRET}")
        except ValueError as error:
            raise kind(WORDS) from error
    except kind:
        return logging.LogRecord(name, 40, __file__, 1, "failed", (), sys.exc_info())


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_bug_is_logged_by_place_and_kind(formatter: logging.Formatter) -> None:
    """What errors say may quote a request; those of torch, which sees none, are shown."""
    for name, kind in (
        ("uvicorn.error", KeyError),
        ("uvicorn.error", RuntimeError),
        ("model.engine.engine", RuntimeError),
    ):
        text = formatter.format(record(name, kind))
        assert SECRET not in text
        assert f"builtins.{kind.__name__}" in text
        assert "builtins.ValueError" in text
        assert "test_logs.py" in text
        assert (WORDS in text) == name.startswith("model.")
