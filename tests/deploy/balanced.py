"""Two servers behind nginx with the example of its configuration."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from tests.support.programs import program
from tests.support.servers.faulty_server import SLOW
from tests.support.servers.live_server import API_KEY, ROOT, LiveServer, start_server
from tests.support.servers.wire import AUTHORIZED, HELLO
from tests.support.waiting import eventually

CONFIG = (ROOT / "scripts" / "deploy" / "nginx.conf").read_text("utf-8")

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


def listens(port: int, process: subprocess.Popen[bytes], folder: Path) -> bool:
    if process.poll() is not None:
        log = folder / "error.log"
        pytest.fail(log.read_text() if log.exists() else "no nginx")
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def balancing(tiny: Path, folder: Path) -> Iterator[Balanced]:
    """Both, until they are no longer needed."""
    nginx = program("nginx")
    faulty = ("-m", "tests.support.servers.faulty_server")
    # Without lookup a step is a token.
    flags = ("--model", str(tiny), "--dtype", "float32", "--api-key", API_KEY, "--no-prompt-lookup")
    servers = {
        name: start_server(*flags, "--served-model-name", name, program=faulty)
        for name in ("one", "two")
    }
    port = free_port()
    trust = write_configuration(folder, list(servers.values()), port)
    process = subprocess.Popen([nginx, "-p", folder, "-c", folder / "nginx.conf"])
    try:
        eventually(lambda: listens(port, process, folder))
        yield Balanced(servers, f"https://127.0.0.1:{port}", trust)
    finally:
        process.terminate()
        process.wait(20)
        for server in servers.values():
            server.stop(signal.SIGKILL)


def wait_until_running(server: LiveServer, count: int) -> None:
    eventually(lambda: running(server) == count, what=f"{count} answers run")


def running(server: LiveServer) -> int:
    text = httpx2.get(f"{server.url}/metrics", headers=AUTHORIZED, timeout=30).text
    found = re.search(r"^phi3v_num_requests_running (\S+)$", text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))
