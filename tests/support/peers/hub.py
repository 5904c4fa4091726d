"""A stand-in for the Hugging Face hub: the part of its protocol that downloads use, over HTTP.

Model info by revision, the tree of a commit, and files by ``resolve``: small ones directly, large
ones (safetensors) by a redirect to a store, as the hub does it; HEAD, ETag and Range in both. It can
break off answers, ask for tokens and be of no use, as the hub can.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)$")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
STORE = re.compile(r"/store/([0-9a-f]+)$")


@dataclass
class Repo:
    """A model: its files by revision, each a commit's hash; other names of it by ``refs``."""

    commits: dict[str, dict[str, bytes]] = field(repr=False)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    token: str | None = None


@dataclass
class Hub:
    """What it holds, how it fails, and what it was asked for.

    Attributes:
        breaks: how many answers from the store still end early, each after ``breaks_after`` bytes.
        goes_on: while it is not set, answers from the store stop after ``breaks_after`` bytes.
        sizes: sizes to tell of files, by name, instead of their own.
        status: answered to everything, instead.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    breaks: int = 0
    breaks_after: int = 100_000
    goes_on: threading.Event = field(default_factory=threading.Event)
    sizes: dict[str, int] = field(default_factory=dict)
    status: int | None = None
    url: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list, repr=False)

    def asked(self, method: str, part: str) -> list[dict[str, str]]:
        """Headers of the requests with that method whose path has ``part``."""
        return [told for how, path, told in self.requests if how == method and part in path]

    def blob(self, digest: str) -> bytes | None:
        """A stored file by its sha256."""
        for repo in self.repos.values():
            for files in repo.commits.values():
                for content in files.values():
                    if hashlib.sha256(content).hexdigest() == digest:
                        return content
        return None


class Handler(BaseHTTPRequestHandler):
    """One connection to the hub."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((self.command, path, headers))
        if self.hub.status is not None:
            self._send(self.hub.status, b"{}")
        elif match := STORE.match(path):
            self._send_file(self.hub.blob(match[1]) or b"", match[1], may_break=True)
        elif match := API.match(path):
            if found := self._find(match[1], match[3]):
                commit, files = found
                told = self._info if match[2] == "revision" else self._tree
                self._send(200, json.dumps(told(match[1], commit, files)).encode())
        elif match := RESOLVE.match(path):
            if found := self._find(match[1], match[2]):
                commit, files = found
                if match[3] not in files:
                    self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                else:
                    self._resolve(commit, match[3], files[match[3]])
        else:
            self._send(404, b"")

    def _find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files, or None after an error was answered."""
        repo = self.hub.repos.get(name)
        token = self.headers.get("Authorization")
        if repo is None or (repo.token and not repo.gated and token is None):
            # Who says no name is not told whether a private model exists.
            self._send(404 if token else 401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        if repo.token and token is not None and token != f"Bearer {repo.token}":
            message = "Invalid credentials in Authorization header"
            self._send(401, b"", {"X-Error-Message": message})
            return None
        if repo.gated and token is None:
            self._send(401, b"", {"X-Error-Code": "GatedRepo"})
            return None
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, repo.commits[commit]

    def _info(self, name: str, commit: str, files: dict[str, bytes]) -> object:
        return {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}

    def _tree(self, _: str, __: str, files: dict[str, bytes]) -> object:
        return [self._entry(path, content) for path, content in files.items()]

    def _entry(self, path: str, content: bytes) -> dict[str, object]:
        size = self.hub.sizes.get(path, len(content))
        oid = hashlib.sha1(content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path, "size": size, "oid": oid}
        if path.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 134}
        return entry

    def _resolve(self, commit: str, path: str, content: bytes) -> None:
        told = {"X-Repo-Commit": commit}
        if not path.endswith(".safetensors"):
            self._send_file(content, hashlib.sha1(content).hexdigest(), told)
            return
        digest = hashlib.sha256(content).hexdigest()
        told["X-Linked-Size"] = str(self.hub.sizes.get(path, len(content)))
        told["X-Linked-ETag"] = f'"{digest}"'
        # By another name of this machine: the client follows redirects within a host only.
        told["Location"] = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/store/{digest}"
        self._send(302, b"", told)

    def _send_file(
        self, content: bytes, tag: str, told: dict[str, str] | None = None, may_break: bool = False
    ) -> None:
        told = {"ETag": f'"{tag}"', "Accept-Ranges": "bytes", **(told or {})}
        status, start = 200, 0
        if match := re.match(r"bytes=(\d+)-$", self.headers.get("Range", "")):
            status, start = 206, int(match[1])
            told["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest = content[start:]
        cut = None
        if may_break and self.command == "GET":
            if self.hub.breaks > 0:
                self.hub.breaks -= 1
                cut = self.hub.breaks_after
            elif not self.hub.goes_on.is_set():
                cut = self.hub.breaks_after
        self._send(status, rest, told, cut)

    def _send(
        self,
        status: int,
        body: bytes,
        told: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (told or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.hub.goes_on.wait(300)
            self.close_connection = True


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    hub.goes_on.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.goes_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
