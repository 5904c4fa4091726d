"""Streams that run while a test of Ray Serve does something else."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx2

from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import AUTHORIZED, HELLO

GREEDY = {"temperature": 0, "ignore_eos": True}


def said(number: int) -> dict[str, Any]:
    """A conversation, as chat takes it."""
    return {"messages": [{"role": "user", "content": f"question {number}"}]}


class Stream(threading.Thread):
    """Reads a stream: its status, its text, and how it ended."""

    def __init__(
        self, server: LiveServer, headers: dict[str, str] | None = None, **body: Any
    ) -> None:
        super().__init__(daemon=True)
        self.headers = AUTHORIZED | (headers or {})
        self.url = f"{server.url}/v1/chat/completions"
        self.body = {"messages": HELLO, "stream": True, **GREEDY, **body}
        self.answer: httpx2.Response | None = None
        self.begun = threading.Event()
        self.text, self.end = "", ""
        self.error: dict[str, Any] = {}
        self.start()

    def run(self) -> None:
        try:
            with httpx2.stream(
                "POST", self.url, json=self.body, headers=self.headers, timeout=120
            ) as self.answer:
                if self.answer.status_code != 200:
                    self.answer.read()
                    self.end = "refused"
                    return
                for line in self.answer.iter_lines():
                    self.take(line)
        except httpx2.TransportError:
            self.end = "broken off"

    def take(self, line: str) -> None:
        if line == "data: [DONE]":
            self.end = "done"
        if line in ("", "data: [DONE]"):
            return
        chunk = json.loads(line.removeprefix("data: "))
        self.error = chunk.get("error", {})
        for choice in chunk.get("choices", []):
            self.text += choice["delta"].get("content") or ""
            if self.text:
                self.begun.set()


def begin(server: LiveServer, number: int, **body: Any) -> list[Stream]:
    """Streams that run, begun one by one, so that Ray knows how full each replica is."""
    streams = []
    for _ in range(number):
        streams.append(Stream(server, **body))
        assert streams[-1].begun.wait(60)
    return streams
