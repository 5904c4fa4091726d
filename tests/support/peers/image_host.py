"""A host of images on this machine, good and bad, with and without TLS; answers to some names."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

from tests.support.servers.wire import png

NAME, OTHER = "images.test", "other.test"
GOOD = png(64, 48)
resolve = socket.getaddrinfo


def resolver(**addresses: list[str]) -> Callable[..., list[Any]]:
    """Stands in for ``socket.getaddrinfo``, for names with ``_`` for their dot."""

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        known = addresses.get(str(host).replace(".", "_"))
        if known is None:
            return resolve(host, port, *args, **kwargs)
        return [found for each in known for found in resolve(each, port, type=socket.SOCK_STREAM)]

    return getaddrinfo


class ImageHost:
    """The host.

    Attributes:
        asked: host and path of each request.
        authority: file with the certificate to trust.
        http, https: where it is, by the name ``NAME``; the certificate is for that alone.
        hosts: of those, as a setting.
    """

    def __init__(self, folder: Path) -> None:
        self.asked: list[tuple[str, str]] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append((self.headers["Host"], self.path))
                with contextlib.suppress(OSError):
                    host.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        authority = trustme.CA()
        self.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(NAME).configure_cert(context)
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        secure = self._servers[1]
        secure.socket = context.wrap_socket(
            secure.socket, server_side=True, do_handshake_on_connect=False
        )
        ports = [server.server_port for server in self._servers]
        self.http, self.https = f"http://{NAME}:{ports[0]}", f"https://{NAME}:{ports[1]}"
        self.hosts = [f"{name}:{port}" for name in (NAME, OTHER) for port in ports]
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """By the path."""
        path, headers, body = handler.path, {}, GOOD
        status = {"/missing": 404, "/redirect": 302, "/busy": 503}.get(path, 200)
        if path == "/redirect":
            headers["Location"] = f"{self.http}/good"
        if path == "/page":
            body = b"<html>"
        if path == "/compressed":
            headers["Content-Encoding"] = "gzip"
        if path not in ("/endless", "/slow"):
            headers["Content-Length"] = "1000000000" if path == "/large" else str(len(body))
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        while path in ("/endless", "/slow"):
            handler.wfile.write(b"x" if path == "/slow" else bytes(100_000))
            time.sleep(0.1 if path == "/slow" else 0)
