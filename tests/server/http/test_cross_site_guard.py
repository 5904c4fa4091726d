"""Pages of other sites in a browser, before a server that asks nobody for a key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.servers.live_server import LiveServer, check_log, start_server
from tests.support.servers.raw import connection, everything
from tests.support.servers.wire import HELLO, check_error
from tests.support.waiting import eventually

PAGE = "https://page.example"
BODY = {"messages": HELLO, "max_tokens": 1}
JSON = {"Content-Type": "application/json"}


def started(tiny: Path, *flags: str) -> Iterator[LiveServer]:
    live = start_server("--model", str(tiny), "--dtype", "float32", *flags)
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


@pytest.fixture(scope="module")
def keyless(tiny: Path) -> Iterator[LiveServer]:
    """On loopback, as it is started without flags."""
    yield from started(tiny)


@pytest.fixture(scope="module")
def friendly(tiny: Path) -> Iterator[LiveServer]:
    """One that knows other names of itself, and a page."""
    names = ("--allowed-hosts", "host.docker.internal, Api.example:8443,[2001:db8::1]")
    yield from started(tiny, *names, "--allowed-origins", PAGE)


@pytest.fixture(scope="module")
def public(tiny: Path) -> Iterator[LiveServer]:
    """One on all addresses."""
    yield from started(tiny, "--host", "0.0.0.0", "--insecure")


def get(live: LiveServer, host: str, method: str = "GET") -> httpx2.Response:
    return httpx2.request(method, f"{live.url}/info", headers={"Host": host})


def post(live: LiveServer, **headers: str) -> httpx2.Response:
    sent = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.post(f"{live.url}/chat/completions", content=json.dumps(BODY), headers=sent)


def check_refusal(response: httpx2.Response, code: str, flag: str) -> None:
    body = check_error(response, 403, code, [])
    assert flag in body["message"]
    assert body["error"]["type"] == "permission_error"


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:1", "localhost.", "app.localhost:8000", "127.0.0.1"),
        *("127.3.2.1:80", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]"),
    ],
)
def test_names_of_this_machine(keyless: LiveServer, host: str) -> None:
    assert get(keyless, host).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "notlocalhost"),
        *(
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]",
            "[::1",
            "localhost:99999",
            "a b",
            "x@[::1]",
        ),
        *("0.0.0.0", "host.docker.internal"),
    ],
)
def test_other_names(keyless: LiveServer, host: str, method: str) -> None:
    """As a page has them that its name server has given this machine's address."""
    check_refusal(get(keyless, host, method), "host_not_allowed", "--allowed-hosts")


@pytest.mark.parametrize("path", ["/", "/health", "/docs", "/metrics", "/playground/settings.json"])
def test_nothing_is_said_to_other_names(keyless: LiveServer, path: str) -> None:
    response = httpx2.get(keyless.url + path, headers={"Host": "evil.example"})
    check_refusal(response, "host_not_allowed", "--allowed-hosts")


def test_an_absolute_target_is_what_a_request_is_for(keyless: LiveServer) -> None:
    with httpx2.Client(proxy=keyless.url, trust_env=False) as client:
        refused = client.get("http://evil.example/info", headers={"Host": "localhost"})
        check_refusal(refused, "host_not_allowed", "--allowed-hosts")
        assert client.get("http://localhost/info").status_code == 200


def test_clients_that_name_no_host(keyless: LiveServer) -> None:
    """Those of HTTP/1.0, which no browser speaks."""
    with connection(keyless, b"GET /info HTTP/1.0\r\n\r\n") as made:
        assert everything(made).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("host.docker.internal", 200),
        ("Host.Docker.Internal:8000", 200),
        ("api.example:8443", 200),
        ("[2001:db8:0::1]:8000", 200),
        ("localhost", 200),
        ("api.example", 403),
        ("api.example:8444", 403),
        ("evil.example", 403),
    ],
)
def test_names_that_are_allowed(friendly: LiveServer, host: str, status: int) -> None:
    assert get(friendly, host).status_code == status


def test_the_servers_own_pages(keyless: LiveServer) -> None:
    own = keyless.url
    assert post(keyless).status_code == 200
    assert post(keyless, Origin=own).status_code == 200
    assert post(keyless, Origin=own.upper(), Sec_Fetch_Site="same-origin").status_code == 200
    # Behind a proxy that speaks TLS to browsers.
    assert post(keyless, Origin="https://localhost", Host="localhost").status_code == 200
    assert post(keyless, Origin="https://localhost", Host="localhost:443").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": PAGE},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost"},
        {"Origin": "https://127.0.0.1.evil.example"},
        {"Origin": PAGE, "Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Content-Type": "text/plain", "Origin": PAGE},
    ],
)
@pytest.mark.parametrize("which", ["keyless", "public"])
def test_pages_from_elsewhere(
    which: str, headers: dict[str, str], request: pytest.FixtureRequest
) -> None:
    live: LiveServer = request.getfixturevalue(which)
    check_refusal(post(live, **headers), "origin_not_allowed", "--allowed-origins")
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    for path in ("/info", "/", "/health"):  # links and pictures: nobody can read what comes
        answer = httpx2.get(live.url + path, headers=sent)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if "access-control" in name]


def test_pages_that_are_allowed(friendly: LiveServer) -> None:
    headers = {"Origin": PAGE, "Sec_Fetch_Site": "cross-site"}
    answer = post(friendly, **headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    refused = post(friendly, **headers, Host="evil.example")
    check_refusal(refused, "host_not_allowed", "--allowed-hosts")
    assert refused.headers["access-control-allow-origin"] == PAGE  # so that it can read that
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    assert httpx2.options(f"{friendly.url}/chat/completions", headers=asks).status_code == 200
    other = post(friendly, Origin="https://evil.example")
    check_refusal(other, "origin_not_allowed", "--allowed-origins")


def test_hosts_on_other_addresses(public: LiveServer) -> None:
    assert get(public, "any.example").status_code == 200


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions", "/tokenize"])
def test_bodies_that_do_not_say_what_they_are(keyless: LiveServer, path: str) -> None:
    for headers in ({}, {"Content-Type": ""}):
        sent = httpx2.post(keyless.url + path, content=json.dumps(BODY), headers=headers)
        body = check_error(sent, 415, "unsupported_media_type", [])
        assert "send Content-Type: application/json" in body["message"]


def test_with_keys_nothing_of_this_matters(server: LiveServer) -> None:
    headers = {"Origin": PAGE, "Host": "any.example", "Sec-Fetch-Site": "cross-site"}
    url, content = f"{server.url}/chat/completions", json.dumps(BODY)
    headers |= {"api-key": server.key}
    assert httpx2.post(url, content=content, headers=headers).status_code == 200


def test_refusals_are_logged(keyless: LiveServer) -> None:
    ids = {"x-request-id": "of-a-page"}
    refused = post(keyless, Origin=PAGE, **ids)
    assert refused.headers["x-request-id"] == "of-a-page"
    (line,) = eventually(lambda: [line for line in keyless.log if "of-a-page" in line])
    assert "status=403" in line
    assert "error_code=origin_not_allowed" in line
