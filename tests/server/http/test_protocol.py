"""HTTP itself: keys, methods, media types, ids, cross-origin requests, kept connections, TLS."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import trustme

from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server
from tests.support.servers.wire import AUTHORIZED, HELLO, chat, check_error
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": API_KEY},
        {"api-key": ""},
        {"Authorization": f"Basic {API_KEY}"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/info"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("POST", "/chat/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/openai/deployments/any/chat/completions"),
        ("POST", "/tokenize"),
    ],
)
def test_wrong_keys(server: LiveServer, headers: dict[str, str], method: str, path: str) -> None:
    """Before anything is said of the body, its type or other headers, however broken they are."""
    broken = {"content-type": "text/plain", "extra-parameters": "sometimes"}
    response = httpx2.request(method, server.url + path, headers=headers | broken, content=b"{")
    body = check_error(response, 401, "Unauthorized", [])
    assert body["error"]["type"] != "invalid_request_error"  # or LiteLLM calls it a bad request
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers", [{"authorization": f"bearer {API_KEY}"}, {"api-key": API_KEY}, AUTHORIZED]
)
def test_right_keys(server: LiveServer, headers: dict[str, str]) -> None:
    assert httpx2.get(f"{server.url}/info", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/chat/completions", "POST"), ("/tokenize", "POST"), ("/info", "GET, HEAD")],
)
def test_methods(server: LiveServer, path: str, allowed: str) -> None:
    for method in ("DELETE", "PUT", "PATCH", "TRACE"):
        response = httpx2.request(method, server.url + path, headers=AUTHORIZED)
        check_error(response, 405, "method_not_allowed", [])
        assert response.headers["allow"] == allowed
    asked = httpx2.options(server.url + path)
    assert (asked.status_code, asked.content) == (204, b"")
    assert asked.headers["allow"] == f"{allowed}, OPTIONS"
    check_error(httpx2.options(f"{server.url}/nowhere"), 404, "not_found", [])


@pytest.mark.parametrize(
    ("path", "status"),
    [("/info", 200), ("/health", 200), ("/nowhere", 404), ("/chat/completions", 405)],
)
def test_head_is_a_get_without_its_body(server: LiveServer, path: str, status: int) -> None:
    head = httpx2.head(server.url + path, headers=AUTHORIZED)
    got = httpx2.get(server.url + path, headers=AUTHORIZED)
    assert (head.status_code, got.status_code) == (status, status)
    assert head.content == b""
    assert head.headers["content-length"] == str(len(got.content))
    assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-encoding": "gzip"},
    ],
)
def test_bodies_that_are_something_else(server: LiveServer, headers: dict[str, str]) -> None:
    check_error(chat(server, headers=headers), 415, "unsupported_media_type", [])


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "text/html", "*/*"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_client_accepts_changes_nothing(
    server: LiveServer, accept: str, stream: bool
) -> None:
    """Azure's SDKs accept ``application/json`` alone, also when they ask for a stream."""
    headers = {"accept": accept, "accept-encoding": "gzip, deflate, br"}
    response = chat(server, headers=headers, stream=stream)
    kind = "text/event-stream" if stream else "application/json"
    assert response.headers["content-type"].split(";")[0] == kind
    assert "content-encoding" not in response.headers


def test_request_ids_are_echoed(server: LiveServer) -> None:
    sent = {"x-ms-client-request-id": "mine", "x-request-id": "also-mine"}
    for response in (httpx2.get(f"{server.url}/info", headers=sent), chat(server, headers=sent)):
        assert {name: response.headers[name] for name in sent} == sent  # also that of a 401
    assert len(httpx2.get(f"{server.url}/health").headers["x-request-id"]) == 32


def test_connections_are_kept(server: LiveServer) -> None:
    """Through answers, streams and refusals."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.connect()
    kept = connection.sock
    bodies = ["{", '{"messages":[{"role":"user","content":"hi"}],"max_tokens":2,"stream":true}'] * 2
    for body in bodies:
        connection.request("POST", "/v1/chat/completions", body, AUTHORIZED)
        assert connection.getresponse().read()
        assert connection.sock is kept
    connection.close()


def test_pages_of_other_origins_are_not_let_in_by_default(server: LiveServer) -> None:
    headers = {"Origin": "https://page.example"}
    assert not [name for name in chat(server, headers=headers).headers if "access-control" in name]


ORIGIN = "https://page.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,extra-parameters",
}


@pytest.fixture(scope="module")
def secure(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveServer, ssl.SSLContext]]:
    """A server with TLS that lets one origin in, and what trusts its certificate."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for part in certificate.cert_chain_pems:
        part.write_to_path(folder / "cert.pem", append=True)
    live = start_server(
        *("--model", str(tiny), "--api-key", API_KEY),
        *("--ssl-certfile", str(folder / "cert.pem"), "--ssl-keyfile", str(folder / "key.pem")),
        *("--header-timeout", "2"),
        PHI3V_ALLOWED_ORIGINS=f"https://other.example, {ORIGIN}",
    )
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    yield live, trusting
    assert live.stop() == 0


def test_pages_of_named_origins(secure: tuple[LiveServer, ssl.SSLContext]) -> None:
    live, trusting = secure

    def ask(method: str, headers: dict[str, str], **more: Any) -> httpx2.Response:
        url = f"{live.url}/v1/chat/completions"
        return httpx2.request(method, url, headers=headers, verify=trusting, **more)

    asked = ask("OPTIONS", PREFLIGHT)  # without a key: browsers send none here
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == ORIGIN
    allowed = asked.headers["access-control-allow-headers"]
    assert {"authorization", "extra-parameters"} <= set(allowed.replace(" ", "").split(","))
    assert ask("OPTIONS", PREFLIGHT | {"Origin": "https://evil.example"}).status_code == 400
    for key, status in ((API_KEY, 200), ("wrong", 401)):
        headers = {"Origin": ORIGIN, "Authorization": f"Bearer {key}"}
        response = ask("POST", headers, json={"messages": HELLO, "max_tokens": 1})
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == ORIGIN
        readable = response.headers["access-control-expose-headers"]
        assert {"x-request-id", "x-ms-error-code", "Retry-After"} <= set(readable.split(", "))


def test_tls(secure: tuple[LiveServer, ssl.SSLContext]) -> None:
    live, trusting = secure
    assert live.url.startswith("https://")
    with httpx2.Client(verify=trusting) as client:
        assert client.get(f"{live.url}/health").json() == {"status": "ready"}
        body = {"messages": HELLO, "max_tokens": 2, "stream": True}
        stream = client.post(f"{live.url}/chat/completions", json=body, headers=AUTHORIZED)
        assert stream.text.endswith("data: [DONE]\n\n")
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{live.url}/health")  # a client that does not trust the certificate


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_half_a_handshake(secure: tuple[LiveServer, ssl.SSLContext], sent: bytes) -> None:
    """Those that begin one and do not go on are closed, and keep nobody else out."""
    live, trusting = secure
    host, port = live.url.removeprefix("https://").split(":")
    process = psutil.Process(live.process.pid)
    files, started = process.num_fds(), time.monotonic()
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            for _ in range(20)
        ]
        for each in silent:
            each.sendall(sent)
        assert httpx2.get(f"{live.url}/health", verify=trusting).json() == {"status": "ready"}
        for each in silent:
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(100) == b""
        assert 1.5 < time.monotonic() - started < 25  # a minute, were the limit not there
    eventually(lambda: process.num_fds() <= files)
    check_log("".join(live.log))
