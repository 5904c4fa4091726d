"""Images by URL: from listed hosts alone, whatever names, redirects and addresses say."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from model import ImageError, ModalityError
from server.images import fetching
from server.images.fetching import Fetcher, is_public
from tests.support.peers.image_host import GOOD, NAME, OTHER, ImageHost, resolver
from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server
from tests.support.servers.wire import chat, check_error, data_url, image_message

LOC = ["messages", 0, "content", 0, "image_url", "url"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageHost]:
    made = ImageHost(tmp_path_factory.mktemp("images"))
    yield made
    made.stop()


@pytest.fixture
def internet(host: ImageHost, monkeypatch: pytest.MonkeyPatch) -> ImageHost:
    """The host, as a part of the internet, and nothing asked of it yet."""
    monkeypatch.setattr(fetching, "is_public", lambda address: address.is_loopback)
    names = resolver(images_test=["127.0.0.1"], other_test=["127.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    monkeypatch.setenv("SSL_CERT_FILE", str(host.authority))
    host.asked.clear()
    return host


def fetch(hosts: list[str], url: str, max_bytes: int = 1_000_000, timeout: float = 20) -> bytes:
    async def run() -> bytes:
        fetcher = Fetcher(hosts, max_bytes, timeout)
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            held += size

        file = await fetcher(fetcher.allowed(url), hold)
        assert held == len(file)
        return file

    return asyncio.run(run())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_file_is_fetched(internet: ImageHost, scheme: str) -> None:
    base = getattr(internet, scheme)
    assert fetch(internet.hosts, f"{base}/good?size=1#there") == GOOD
    assert internet.asked == [(base.removeprefix(f"{scheme}://"), "/good?size=1")]
    assert fetch(internet.hosts, f"{base.upper()}/good") == GOOD


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.test/x",
        "https://images.test.elsewhere.test/x",
        "https://images.test@elsewhere.test/x",
        "https://elsewhere.test\\@images.test/x",
        "https://a:b@images.test/x",
        "https://images.test:444/x",
        "https://images.test:0443x/x",
        "https://images.test./x",
        "https://127.0.0.1/x",
        "https://2130706433/x",
        "https://xn--a/x",
        "https://[::1]/x",
        "https:///x",
        "https://images.test\n.elsewhere.test/x",
        "https://images.test/" + "x" * 100_000,
        "https://" + "x" * 1000,
    ],
)
def test_hosts_that_are_not_listed(url: str) -> None:
    with pytest.raises(ModalityError):
        Fetcher(["images.test"], 1, 1).allowed(url)


def test_hosts_that_are_listed() -> None:
    allowed = Fetcher(["Images.test", "bücher.example:8443"], 1, 1).allowed
    for url, host in (
        ("https://images.test/x", "images.test"),
        ("http://images.test", "images.test"),
        ("HTTPS://IMAGES.TEST:443/x", "images.test"),
        ("https://bücher.example:8443/x", "bücher.example"),
        ("https://xn--bcher-kva.example:8443/x", "bücher.example"),
    ):
        assert allowed(url).host == host


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "returned 404"),
        ("/busy", "returned 503"),
        ("/redirect", "redirects are not followed"),
        ("/compressed", "compressed"),
        ("/large", "larger than the limit of 1000000 bytes"),
        ("/endless", "larger than the limit of 1000000 bytes"),
        ("/slow", "longer than the limit of 2 seconds"),
    ],
)
def test_files_that_cannot_be_had(internet: ImageHost, path: str, message: str) -> None:
    timeout = 2 if path == "/slow" else 60
    started = time.monotonic()
    with pytest.raises(ImageError, match=message):
        fetch(internet.hosts, internet.http + path, timeout=timeout)
    assert time.monotonic() - started < 30
    assert [asked for _, asked in internet.asked] == [path]


def test_a_certificate_for_another_name(internet: ImageHost) -> None:
    """The address is the same, and so would be the certificate of its own name."""
    with pytest.raises(ImageError, match=f"from {OTHER}: .*certificate"):
        fetch(internet.hosts, internet.https.replace(NAME, OTHER))
    assert internet.asked == []


def test_a_host_that_does_not_listen(internet: ImageHost) -> None:
    with socket.socket() as bound:  # and has not called listen
        bound.bind(("127.0.0.1", 0))
        place = f"{NAME}:{bound.getsockname()[1]}"
        with pytest.raises(ImageError, match=f"from {NAME}"):
            fetch([place], f"http://{place}/x")


def test_the_next_address_is_tried(internet: ImageHost, monkeypatch: pytest.MonkeyPatch) -> None:
    names = resolver(images_test=["127.77.0.1", "127.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    assert fetch(internet.hosts, f"{internet.http}/good") == GOOD


def test_a_name_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ImageError, match="not known"):
        fetch(["images.test"], "https://images.test/x")


@pytest.mark.parametrize("others", [[], ["127.0.0.1"]], ids=["alone", "beside a good one"])
def test_a_private_address_is_never_connected_to(
    internet: ImageHost, monkeypatch: pytest.MonkeyPatch, others: list[str]
) -> None:
    names = resolver(images_test=[*others, "10.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    with pytest.raises(ImageError, match="address is not public"):
        fetch(internet.hosts, f"{internet.http}/good")
    assert internet.asked == []


def test_this_machine_is_private(host: ImageHost) -> None:
    """As the setting has it, without the stand-ins of the other tests."""
    host.asked.clear()
    port = host.http.rpartition(":")[2]
    for name in ("localhost", "127.0.0.1", "127.1", "0.0.0.0"):
        with pytest.raises((ImageError, ModalityError)):
            fetch([f"{name}:{port}"], f"http://{name}:{port}/good")
    assert host.asked == []


def test_a_name_is_resolved_once(internet: ImageHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another answer, a moment later, would lead elsewhere."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]

    def getaddrinfo(name: str, *args: object, **kwargs: object) -> list[object]:
        addresses = answers.pop(0) if name == NAME else [name]
        return resolver(images_test=addresses)(name, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert fetch(internet.hosts, f"{internet.http}/good") == GOOD
    assert answers == [["10.0.0.1"]]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.215.14", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
        ("2001:0:a00:1::", False),
        ("fc00::1", False),
        ("fe80::1", False),
        ("fe80::1%1", False),
        ("ff02::1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ip_address(address)) == public


@pytest.fixture(scope="module")
def fetching_server(tiny: Path, host: ImageHost) -> Iterator[LiveServer]:
    live = start_server(
        *("--model", str(tiny), "--dtype", "float32", "--api-key", API_KEY),
        *("--allow-image-hosts", ",".join(host.hosts), "--image-timeout", "5"),
        *("--max-body-mb", "1"),
        program=("-m", "tests.support.servers.fetching_server"),
        SSL_CERT_FILE=str(host.authority),
    )
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions", "/tokenize"])
def test_a_url_is_as_good_as_the_file(
    fetching_server: LiveServer, host: ImageHost, path: str
) -> None:
    answers = []
    for url in (f"{host.https}/good", data_url(GOOD)):
        messages = image_message(url)
        more = {"max_tokens": None} if path == "/tokenize" else {"temperature": 0}
        response = chat(fetching_server, path, messages=messages, **more)
        assert response.status_code == 200, response.text
        body = response.json()
        answers.append(body["tokens"] if path == "/tokenize" else body["choices"][0]["message"])
    assert answers[0] == answers[1]


def test_only_the_image_that_is_looked_at_is_fetched(
    fetching_server: LiveServer, host: ImageHost
) -> None:
    host.asked.clear()
    between = {"role": "assistant", "content": "x"}
    first, last = image_message(f"{host.http}/first"), image_message(f"{host.http}/last")
    assert chat(fetching_server, messages=[*first, between, *last]).status_code == 200
    assert [path for _, path in host.asked] == ["/last"]
    host.asked.clear()
    last = image_message(data_url(GOOD))
    assert chat(fetching_server, messages=[*first, between, *last]).status_code == 200
    assert host.asked == []


@pytest.mark.parametrize("path", ["/page", "/missing", "/redirect", "/large", "/endless", "/slow"])
def test_bad_files_are_the_request_s_fault(
    fetching_server: LiveServer, host: ImageHost, path: str
) -> None:
    response = chat(fetching_server, messages=image_message(host.http + path))
    check_error(response, 422, "invalid_image", LOC)


@pytest.mark.parametrize(
    "url", ["https://elsewhere.test/x", "file:///etc/passwd", "ftp://x/y", "x"]
)
def test_other_urls(fetching_server: LiveServer, url: str) -> None:
    response = chat(fetching_server, messages=image_message(url))
    check_error(response, 422, "modality_not_supported", LOC)


def test_nothing_is_fetched_by_default(server: LiveServer, host: ImageHost) -> None:
    host.asked.clear()
    port = host.http.rpartition(":")[2]
    response = chat(server, messages=image_message(f"http://127.0.0.1:{port}/good"))
    body = check_error(response, 422, "modality_not_supported", LOC)
    assert "does not fetch images" in body["message"]
    assert host.asked == []
