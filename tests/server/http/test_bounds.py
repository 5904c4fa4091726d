"""What a connection, a body and an answer may cost: clients that are slow, many, large or deaf."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from server.http.connection_limit import RESERVE
from tests.support.live_server import API_KEY, LiveServer, check_log, start_server
from tests.support.raw import check_raw, connection, everything
from tests.support.waiting import TRIES
from tests.support.wire import AUTHORIZED, HELLO, chat, check_error, data_url, image_message, png

SECONDS = 2  # every time limit of connections here
ANSWER_SECONDS = 5
CONNECTIONS = 20
LONG: dict[str, Any] = {"messages": HELLO, "max_tokens": 7000, "ignore_eos": True, "n": 8}


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def hasty(tiny: Path) -> Iterator[LiveServer]:
    """A server whose answers may not take long."""
    flags = ("--dtype", "float32", "--api-key", API_KEY)
    live = start_server("--model", str(tiny), *flags, "--request-timeout", str(ANSWER_SECONDS))
    assert chat(live).status_code == 200  # what takes long at the first answer is behind it
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


@pytest.fixture(autouse=True)
def nothing_is_left(bounded: LiveServer) -> Iterator[None]:
    """After each test the server is well, and no connection of it is open."""
    yield
    assert httpx2.get(f"{bounded.url}/health").json() == {"status": "ready"}
    until_none_is_open(bounded)


def until_none_is_open(server: LiveServer) -> None:
    deadline = time.monotonic() + 60
    process = psutil.Process(server.process.pid)
    while [c for c in process.net_connections("tcp") if c.status == "ESTABLISHED"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


HEAD = (
    f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\napi-key: {API_KEY}\r\n"
    "Content-Type: application/json\r\n"
).encode()


@pytest.mark.parametrize(
    ("parts", "drip"),
    [
        ([], b""),
        ([b"POST /v1/chat"], b""),
        ([HEAD], b"x-header: 1\r\n"),
        ([b"\r\n"], b""),
    ],
    ids=["nothing", "a piece", "headers without end", "an empty line"],
)
def test_slow_heads(bounded: LiveServer, parts: list[bytes], drip: bytes) -> None:
    started = time.monotonic()
    with connection(bounded, *parts) as made:
        if drip:
            with contextlib.suppress(OSError):
                while time.monotonic() < started + SECONDS + 3:
                    made.sendall(drip)
                    time.sleep(0.2)
        received = everything(made)
    assert time.monotonic() - started < SECONDS + 20
    if received.startswith(b"HTTP/1.1 400"):  # an empty line is no request
        check_raw(received, 400, "bad_request")
    else:
        check_raw(received, 408, "request_timeout")


@pytest.mark.parametrize("how", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("drips", [False, True])
def test_slow_bodies(bounded: LiveServer, how: str, drips: bool) -> None:
    started = time.monotonic()
    drip = b"1\r\n \r\n" if "chunked" in how else b" "
    with connection(bounded, HEAD + how.encode() + b"\r\n\r\n") as made:
        made.settimeout(0.2)
        received = b""
        while time.monotonic() < started + SECONDS + 3 and not received:
            with contextlib.suppress(TimeoutError):
                if drips:
                    made.sendall(drip)
                received = made.recv(65536)
        made.settimeout(60)
        received += everything(made)
    assert time.monotonic() - started > SECONDS - 0.5
    check_raw(received, 408, "request_timeout")


def test_a_slow_body_that_nobody_wants(bounded: LiveServer) -> None:
    started = time.monotonic()
    with connection(
        bounded, b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    ) as made:
        assert made.recv(4096).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(OSError):
            while time.monotonic() < started + SECONDS + 20:
                made.sendall(b" ")
                time.sleep(0.2)
            pytest.fail("it may drip for ever")


def test_idle_connections_are_closed(bounded: LiveServer) -> None:
    started = time.monotonic()
    with connection(bounded, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") as made:
        assert everything(made).startswith(b"HTTP/1.1 200")
    assert SECONDS - 0.5 < time.monotonic() - started < SECONDS + 20


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: " + b"b" * 100_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    ],
    ids=["text", "long header", "bad chunk", "negative length", "two lengths", "TLS"],
)
def test_what_is_no_http(bounded: LiveServer, raw: bytes) -> None:
    with connection(bounded, raw) as made:
        check_raw(everything(made), 400, "bad_request")


@contextlib.contextmanager
def taken(server: LiveServer) -> Iterator[None]:
    """All connections are, by clients that say nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connection(server))
        yield


def test_connections_beyond_the_limit(bounded: LiveServer) -> None:
    """Some that do nothing: others are told to come again, and get in once those are cut off."""
    url = f"{bounded.url}/info"
    for _ in range(TRIES):  # some may be cut off before all have come
        with taken(bounded):
            response = httpx2.get(url, headers=AUTHORIZED)
        if response.status_code == 503:
            break
        until_none_is_open(bounded)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.headers["connection"] == "close"
    body = response.json()
    assert body["code"] == "overloaded"
    assert f"there are {CONNECTIONS} connections, the limit here" in body["message"]
    deadline = time.monotonic() + 60
    while httpx2.get(url, headers=AUTHORIZED).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("others", [0, RESERVE, 100])
@pytest.mark.parametrize("path", ["/health", "/health/live", "//health/ready/"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_beyond_the_limit(bounded: LiveServer, method: str, path: str, others: int) -> None:
    """Whatever else there is: also where others, that say nothing, take the place of probes."""
    for _ in range(TRIES):
        with taken(bounded), contextlib.ExitStack() as stack:
            for _ in range(others):
                stack.enter_context(connection(bounded))
            answer = httpx2.request(method, bounded.url + path)
            assert answer.status_code == 200
        until_none_is_open(bounded)
        if "connection" in answer.headers:
            break
    assert answer.headers["connection"] == "close"  # its place is for the next


@pytest.mark.parametrize(
    "ask",
    [
        HEAD + b"Content-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: 1000\r\n\r\n",
        b"GET /healthy HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
    ids=["body", "slow body", "other path", "other method", "nothing"],
)
def test_what_is_no_probe_beyond_the_limit(bounded: LiveServer, ask: bytes) -> None:
    for _ in range(TRIES):
        with taken(bounded), connection(bounded, ask) as made:
            received = everything(made)
        until_none_is_open(bounded)
        if received.startswith(b"HTTP/1.1 503"):
            break
    check_raw(received, 503, "overloaded")


def test_a_client_that_does_not_read_is_cut_off(bounded: LiveServer) -> None:
    """It asks for many megabytes, and takes none."""
    ask = b"GET /docs-files/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20
    process = psutil.Process(bounded.process.pid)
    started = time.monotonic()
    with connection(bounded, ask) as made:
        own = made.getsockname()[1]

        def is_open() -> bool:
            return any(c.raddr and c.raddr.port == own for c in process.net_connections("tcp"))

        while not is_open() and time.monotonic() < started + SECONDS:
            pass  # the server has not accepted it yet
        while is_open():
            assert time.monotonic() < started + 60
            time.sleep(0.1)
    assert time.monotonic() - started > SECONDS - 0.5


def test_an_answer_that_takes_too_long(hasty: LiveServer) -> None:
    url = f"{hasty.url}/v1/chat/completions"
    started = time.monotonic()
    response = httpx2.post(url, json=LONG, headers=AUTHORIZED, timeout=60)
    assert ANSWER_SECONDS - 0.5 < time.monotonic() - started < ANSWER_SECONDS + 25
    body = check_error(response, 408, "request_timeout", [])
    assert f"longer than {ANSWER_SECONDS} seconds" in body["message"]
    assert response.headers["x-should-retry"] == "false"


def test_a_stream_that_takes_too_long(hasty: LiveServer) -> None:
    url = f"{hasty.url}/v1/chat/completions"
    lines: list[str] = []
    body = LONG | {"stream": True}
    with httpx2.stream("POST", url, json=body, headers=AUTHORIZED, timeout=60) as response:
        assert response.status_code == 200
        with pytest.raises(httpx2.RemoteProtocolError):
            lines.extend(line for line in response.iter_lines() if line)
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "request_timeout"
    assert len(lines) > 3


def test_bodies_that_are_held(bounded: LiveServer) -> None:
    """Large ones that arrive together; a small one in between is served."""
    head = HEAD + b"Content-Length: 2900000\r\n\r\n"
    for _ in range(TRIES):  # the first may be cut off before the second has come
        with connection(bounded, head, b" " * 2_800_000):
            time.sleep(0.5)
            with connection(bounded, head, b" " * 2_900_000) as second:
                answer = second.recv(4096)
            assert chat(bounded).status_code == 200
        if answer.startswith(b"HTTP/1.1 429"):
            break
    assert answer.startswith(b"HTTP/1.1 429")


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 100_000):
        yield b" " * 100_000


def test_bodies_without_a_length(bounded: LiveServer) -> None:
    url = f"{bounded.url}/v1/chat/completions"
    response = httpx2.post(url, content=chunks(4_000_000), headers=AUTHORIZED)
    check_error(response, 413, "request_too_large", [])


@pytest.mark.parametrize("messages", ["text", "images"])
def test_what_waits_is_bounded(bounded: LiveServer, messages: str) -> None:
    """Tokens and images in the making; when their readers have left there is room again."""
    text = [{"role": "user", "content": "word " * 400}]
    content = text if messages == "text" else image_message(data_url(png(700, 700)))
    url = f"{bounded.url}/v1/chat/completions"
    body = {"messages": content, "max_tokens": 7000, "ignore_eos": True, "stream": True}
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            asked = httpx2.stream("POST", url, json=body, headers=AUTHORIZED)
            refused = stack.enter_context(asked)
            if refused.status_code != 200:
                break
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert "in the making" in json.loads(refused.read())["message"]
    deadline = time.monotonic() + 60
    while chat(bounded, messages=content).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_too_many_images(bounded: LiveServer) -> None:
    turns = [*image_message(data_url(png(40, 30))), {"role": "assistant", "content": "x"}]
    body = {"messages": turns * 4, "max_tokens": 2}
    url = f"{bounded.url}/v1/chat/completions"
    response = httpx2.post(url, json=body, headers=AUTHORIZED)
    loc = ["messages", 6, "content", 0, "image_url", "url"]
    check_error(response, 422, "too_many_images", loc)


@pytest.mark.parametrize("depth", [50, 500, 100_000])
def test_deep_json(bounded: LiveServer, depth: int) -> None:
    content = b'{"messages":' + b"[" * depth + b"]" * depth + b"}"
    url = f"{bounded.url}/v1/chat/completions"
    response = httpx2.post(url, content=content, headers=AUTHORIZED)
    assert response.status_code in (400, 422)
    assert response.json()["code"] in ("invalid_json", "invalid_parameter")
