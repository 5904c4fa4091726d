"""The example of nginx before several servers, with real ones of both."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import trustme

from server.settings import Settings
from tests.support.faulty_server import KILL, SLOW, STEP
from tests.support.live_server import API_KEY, ROOT, LiveServer, start_server
from tests.support.wire import AUTHORIZED, HELLO, check_error

pytestmark = pytest.mark.slow  # in all

CONFIG = (ROOT / "scripts" / "deploy" / "nginx.conf").read_text("utf-8")
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
needs_nginx = pytest.mark.skipif(
    NGINX is None, reason="nginx is not installed (nginx-light will do)"
)
MAIN = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 256; }}
http {{
    access_log off;
    {paths}
    include {folder}/phi3v.conf;
}}
"""
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def seconds(directive: str) -> int:
    found = re.search(rf"{directive} +(\d+)s;", CONFIG)
    assert found is not None
    return int(found[1])


def default(name: str) -> Any:
    return Settings.model_fields[name].default


def test_its_limits_leave_the_servers_their_own() -> None:
    assert seconds("proxy_read_timeout") > default("request_timeout")
    assert seconds("proxy_send_timeout") > default("body_timeout")
    assert seconds("client_body_timeout") >= default("body_timeout")
    size = re.search(r"client_max_body_size (\d+)m;", CONFIG)
    assert size is not None
    assert int(size[1]) * 2**20 > default("max_body_mb") * 1e6


@dataclass
class Balanced:
    """Two servers behind nginx; each answers under its own name."""

    servers: dict[str, LiveServer]
    url: str
    trust: ssl.SSLContext

    def ask(self, headers: dict[str, str], **more: Any) -> httpx2.Response:
        body = {"messages": HELLO, "max_tokens": 2, "temperature": 0, **more}
        url, sent = f"{self.url}/chat/completions", {**AUTHORIZED, **headers}
        return httpx2.post(url, json=body, headers=sent, verify=self.trust, timeout=120)

    def who(self, **headers: str) -> str:
        """The name of the server that answers."""
        answer = self.ask({name.replace("_", "-"): value for name, value in headers.items()})
        assert answer.status_code == 200, answer.text
        name: str = answer.json()["model"]
        return name

    def long_answer(self, headers: dict[str, str]) -> AbstractContextManager[httpx2.Response]:
        """A stream that goes on for minutes."""
        body = {"messages": HELLO, "max_tokens": 400, "seed": SLOW, "stream": True}
        url, sent = f"{self.url}/v1/chat/completions", {**AUTHORIZED, **headers}
        body |= {"ignore_eos": True}
        return httpx2.stream("POST", url, json=body, headers=sent, verify=self.trust, timeout=60)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def write_configuration(folder: Path, servers: list[LiveServer], port: int) -> ssl.SSLContext:
    """The example with the addresses, port and certificate of the test, and nothing else changed."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(str(folder / "phi3v-certificate.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "phi3v-key.pem"))
    text = CONFIG
    addresses = re.findall(r"^    server (\S+:\d+) ", CONFIG, re.MULTILINE)
    changes = dict(zip(addresses, (s.url.removeprefix("http://") for s in servers), strict=True))
    changes |= {"listen 443 ssl": f"listen 127.0.0.1:{port} ssl", "/etc/nginx/": f"{folder}/"}
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "phi3v.conf").write_text(text, "utf-8")
    paths = "\n".join(f"{name}_temp_path {folder}/{name};" for name in TEMPORARY)
    user = "user root;" if os.geteuid() == 0 else ""  # whose the folder is
    (folder / "nginx.conf").write_text(MAIN.format(user=user, folder=folder, paths=paths), "utf-8")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return trust


def wait_for(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            log = folder / "error.log"
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text() if log.exists() else "no nginx") from None
            time.sleep(0.1)
        else:
            return


@contextlib.contextmanager
def balancing(tiny: Path, folder: Path) -> Iterator[Balanced]:
    assert NGINX is not None
    program = ("-m", "tests.support.faulty_server")
    # Without lookup a step is a token.
    flags = ("--model", str(tiny), "--dtype", "float32", "--api-key", API_KEY, "--no-prompt-lookup")
    servers = {
        name: start_server(*flags, "--served-model-name", name, program=program)
        for name in ("one", "two")
    }
    port = free_port()
    trust = write_configuration(folder, list(servers.values()), port)
    process = subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf"])
    try:
        wait_for(port, process, folder)
        yield Balanced(servers, f"https://127.0.0.1:{port}", trust)
    finally:
        process.terminate()
        process.wait(20)
        for server in servers.values():
            server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def balanced(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    with balancing(tiny, tmp_path_factory.mktemp("nginx")) as made:
        yield made


@pytest.fixture
def doomed(tiny: Path, tmp_path: Path) -> Iterator[Balanced]:
    """Servers of the test's own, for those that end them."""
    with balancing(tiny, tmp_path) as made:
        yield made


@needs_nginx
def test_a_conversation_stays_where_it_began(balanced: Balanced) -> None:
    first = {f"chat-{i}": balanced.who(x_conversation_id=f"chat-{i}") for i in range(24)}
    assert set(first.values()) == {"one", "two"}  # about as many each
    again = {name: balanced.who(x_conversation_id=name) for name in reversed(first)}
    assert again == first
    # The cache that it is for.
    question = [{"role": "user", "content": "tell me a story " * 40}]
    header = {"X-Conversation-Id": "story"}
    cached = [
        balanced.ask(header, messages=question).json()["usage"]["prompt_tokens_details"]
        for _ in range(2)
    ]
    assert cached[0]["cached_tokens"] < 20 < cached[1]["cached_tokens"]


@needs_nginx
def test_one_503_moves_no_conversation(balanced: Balanced) -> None:
    header = {"X-Conversation-Id": "busy"}
    first = balanced.who(**header)
    busy = [{"role": "user", "content": "BUSY"}]
    assert balanced.ask(header, messages=busy).status_code == 503
    assert balanced.who(**header) == first


@needs_nginx
def test_without_the_header_a_key_and_address_are_one_conversation(balanced: Balanced) -> None:
    assert len({balanced.who() for _ in range(6)}) == 1


@needs_nginx
def test_tokens_come_one_by_one(balanced: Balanced) -> None:
    client = openai.OpenAI(
        base_url=f"{balanced.url}/v1",
        api_key=API_KEY,
        http_client=httpx2.Client(verify=balanced.trust, timeout=60),
    )
    count = 8
    stream = client.chat.completions.create(
        model="any",
        messages=HELLO,  # type: ignore[arg-type]
        max_tokens=count,
        seed=SLOW,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    times = [time.monotonic() for _ in stream]
    assert len(times) > 2
    assert times[-1] - times[0] > (count - 2) * STEP


@needs_nginx
def test_leaving_reaches_the_server(balanced: Balanced) -> None:
    name = balanced.who()
    server = balanced.servers[name]
    with balanced.long_answer({}) as response:
        lines = response.iter_lines()  # held: it hangs up when it is dropped
        next(lines)
        wait_until_running(server, 1)  # the first event may come before
    wait_until_running(server, 0)


def wait_until_running(server: LiveServer, count: int) -> None:
    deadline = time.monotonic() + 60
    while running(server) != count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(server: LiveServer) -> int:
    text = httpx2.get(f"{server.url}/metrics", headers=AUTHORIZED, timeout=30).text
    found = re.search(r"^phi3v_num_requests_running (\S+)$", text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


@needs_nginx
def test_the_servers_own_errors_pass(balanced: Balanced) -> None:
    assert balanced.ask({}, temperature=9).json()["error"]["param"] == "temperature"
    wrong = balanced.ask({"Authorization": "Bearer wrong"})
    assert (wrong.status_code, wrong.json()["code"]) == (401, "Unauthorized")
    large = balanced.ask({}, messages=[{"role": "user", "content": "x" * 33_000_000}])
    assert (large.status_code, large.json()["code"]) == (413, "request_too_large")


@needs_nginx
@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/metrics/",
        "/metrics//",
        "//metrics",
        "/metrics%2f",
        "/%6detrics",
        "/./metrics/.",
    ],
)
def test_metrics_are_not_for_everybody(balanced: Balanced, path: str) -> None:
    port = int(balanced.url.rsplit(":", 1)[1])
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=balanced.trust)
    connection.request("GET", path, headers=AUTHORIZED)  # as it is, where others make it plain
    with contextlib.closing(connection), connection.getresponse() as answer:
        assert answer.status == 404
        assert "x-request-id" not in answer.headers  # nginx's own


def posts(server: LiveServer) -> list[str]:
    """The lines of the log about answers that were asked for."""
    assert httpx2.get(f"{server.url}/health/live", headers={"x-request-id": "last"}).is_success
    while not any("request_id=last" in line for line in server.log):
        time.sleep(0.01)
    found = [line for line in server.log if " method=POST " in line]
    server.log.clear()
    return found


@needs_nginx
def test_what_may_have_killed_a_server_is_not_sent_to_another(doomed: Balanced) -> None:
    one, two = doomed.servers.values()
    header = {"X-Conversation-Id": a_chat_of(doomed, "one"), "extra-parameters": "pass-through"}
    posts(two)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(doomed.ask, header, seed=SLOW, ignore_eos=True, max_tokens=400)
        wait_until_running(one, 1)
        one.stop(signal.SIGKILL)
        answer = asked.result(60)
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) > 0
    assert posts(two) == []
    assert (
        doomed.ask(header).json()["model"] == "two"
    )  # what comes now has not been sent to anybody


@needs_nginx
def test_what_an_engine_failed_at_is_not_sent_to_another(doomed: Balanced) -> None:
    two = doomed.servers["two"]
    header = {"X-Conversation-Id": a_chat_of(doomed, "one"), "extra-parameters": "pass-through"}
    posts(two)
    more = {"seed": KILL, "ignore_eos": True, "max_tokens": 20}
    check_error(doomed.ask(header, **more), 503, "engine_dead", [])
    assert posts(two) == []
    assert doomed.ask(header).json()["model"] == "two"


@needs_nginx
def test_a_draining_server_is_left_and_when_all_drain_they_say_so(doomed: Balanced) -> None:
    one, two = doomed.servers.values()
    chats = {name: {"X-Conversation-Id": a_chat_of(doomed, name)} for name in ("one", "two")}
    with doomed.long_answer(chats["one"]) as first, doomed.long_answer(chats["two"]) as second:
        held = [first.iter_lines(), second.iter_lines()]  # they hang up when they are dropped
        for lines in held:
            next(lines)
        drain(one)
        assert doomed.who(**chats["one"]) == "two"
        drain(two)
        refused = doomed.ask(chats["one"])
    assert refused.headers.pop("retry-after") == "1"
    body = check_error(refused, 503, "overloaded", [])
    assert body["message"] == "the server is shutting down"


def a_chat_of(balanced: Balanced, name: str) -> str:
    """A conversation that is that server's."""
    chats = (f"chat-{number}" for number in range(100))
    return next(chat for chat in chats if balanced.who(X_Conversation_Id=chat) == name)


def drain(server: LiveServer) -> None:
    server.process.send_signal(signal.SIGTERM)
    while httpx2.get(f"{server.url}/health").json() != {"status": "draining"}:
        time.sleep(0.01)


@needs_nginx
def test_when_servers_go_the_others_go_on(balanced: Balanced) -> None:
    """The last test of the servers, which it ends: one in the middle of an answer, then the other."""
    first = {f"chat-{i}": balanced.who(x_conversation_id=f"chat-{i}") for i in range(12)}
    its = next(chat for chat, name in first.items() if name == "one")
    with balanced.long_answer({"X-Conversation-Id": its}) as response:
        lines = response.iter_lines()
        next(lines)
        balanced.servers["one"].stop(signal.SIGKILL)
        with pytest.raises(httpx2.TransportError):  # lost, and not as if it were whole
            list(lines)
    after = {name: balanced.who(x_conversation_id=name) for name in first}
    assert set(after.values()) == {"two"}
    own = balanced.servers["two"]
    body = {"messages": HELLO, "temperature": 9}
    shape = httpx2.post(f"{own.url}/chat/completions", json=body, headers=AUTHORIZED).json()
    own.stop(signal.SIGKILL)
    refused = balanced.ask({})
    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/json"
    assert refused.headers["x-ms-error-code"] == "overloaded"
    assert int(refused.headers["retry-after"]) > 0
    error = json.loads(refused.text)
    assert error.keys() == shape.keys()
    assert error["error"].keys() == shape["error"].keys()
    assert error["message"] == error["error"]["message"]
