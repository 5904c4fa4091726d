"""Several callers at once: nothing of one shows in what another, an operator or a collector sees."""

from __future__ import annotations

import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image, PngImagePlugin

from tests.support.peers.collector import collecting
from tests.support.servers.live_server import ROOT, LiveServer, check_log, start_server

CALLERS = 4
ROUTE = "/v1/chat/completions"
TEXT = "the quick brown fox jumps over the lazy dog " * 4
INNER = re.compile(r"Traceback|\.py\b|site-packages|\(_\w+\)|0x[0-9a-f]{6}|/tmp|/home")


@dataclass
class Caller:
    """One who asks, what only they know, and all that they were told."""

    number: int
    received: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"caller{self.number}"

    @property
    def key(self) -> str:
        return f"key-of-{self.number}-{'x' * 20}"

    @property
    def secret(self) -> str:
        return f"xylophone-{4711 + self.number}"

    @property
    def image(self) -> str:
        """As large as everybody's, of a colour of its own; the secret is in a comment of the file."""
        file, info = io.BytesIO(), PngImagePlugin.PngInfo()
        info.add_text("Comment", self.secret)
        Image.new("RGB", (120, 90), (40 * self.number, 200, 90)).save(file, "PNG", pnginfo=info)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    def post(self, live: LiveServer, body: dict[str, Any], path: str = ROUTE) -> tuple[int, str]:
        """Status and body."""
        headers = {"api-key": self.key}
        answer = httpx2.post(live.url + path, json=body, headers=headers, timeout=120)
        self.received += [answer.text, str(answer.headers)]
        return answer.status_code, answer.text

    def bodies(self) -> list[dict[str, Any]]:
        """Requests that all begin as everybody's do, and go on as nobody else's."""
        usual = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
        logprobs = {"logprobs": True, "top_logprobs": 3}
        text = [{"role": "user", "content": TEXT + self.secret}]
        parts = [
            {"type": "text", "text": TEXT},
            {"type": "image_url", "image_url": {"url": self.image}},
        ]
        seen = [{"role": "user", "content": parts}]
        forced = {"guided_choice": [self.secret], "max_tokens": 40, "temperature": 0}
        return [
            {"messages": text, **usual, **logprobs},
            {"messages": text, **usual, "n": 2, "stream": True},
            {"messages": seen, **usual, **logprobs},
            {"messages": seen, **usual, "stream": True},
            {"messages": text, **forced},
            {"messages": seen, **forced, "stream": True},
        ]

    def bad_bodies(self) -> list[dict[str, Any]]:
        secret, text = self.secret, [{"role": "user", "content": self.secret}]
        broken = [{"type": "image_url", "image_url": {"url": self.image[:200] + secret}}]
        return [
            {"messages": [{"role": secret, "content": secret}]},
            {"messages": text, secret: secret},  # which is ignored
            {"messages": text, "temperature": secret},
            {"messages": text, "guided_regex": f"({secret}"},
            {"messages": text, "guided_grammar": f"start: {secret}"},
            {"messages": [{"role": "user", "content": broken}]},
            {"messages": [{"role": "user", "content": f"{secret} " * 2000}]},
        ]


@pytest.mark.parametrize("style", ["text", pytest.param("json", marks=pytest.mark.slow)])
def test_nothing_of_one_caller_shows_anywhere_else(tiny: Path, style: str) -> None:
    callers = [Caller(number) for number in range(CALLERS)]
    keys = "\n".join(f'{caller.name} = "{caller.key}"' for caller in callers)
    with collecting() as collector:
        live = start_server(
            *("--model", str(tiny), "--dtype", "float32", "--max-model-len", "2000"),
            *("--isolate-caches", "--log-format", style, "--otlp-endpoint", collector.url),
            PHI3V_API_KEYS=keys,
        )
        try:
            seen_by_others = check_answers(live, callers)
        finally:
            assert live.stop() == 0
        traces = b"".join(collector.raw).decode("latin-1")
    assert len(collector.raw) > 0
    log = "".join(live.log)
    assert all(f"caller={caller.name}" in log or f'"{caller.name}"' in log for caller in callers)
    for caller in callers:
        for text in (log, traces, seen_by_others):
            assert caller.secret not in text
            assert caller.key not in text
            assert caller.image[60:140] not in text
    check_log(log)


def check_answers(live: LiveServer, callers: list[Caller]) -> str:
    """Ask one by one and all at once; returns what those see who asked for nothing of this."""
    alone = [[texts(*c.post(live, body)) for body in c.bodies()] for c in callers]
    with ThreadPoolExecutor(4 * CALLERS) as pool:
        asked = [[pool.submit(c.post, live, body) for body in c.bodies()] for c in callers]
        wrong = [pool.submit(c.post, live, body) for c in callers for body in c.bad_bodies()]
        assert [[texts(*each.result()) for each in own] for own in asked] == alone
        assert {each.result()[0] for each in wrong} == {200, 400, 422}
    for caller, answers in zip(callers, alone, strict=True):
        assert answers[4] == answers[5] == {0: caller.secret}
        # Of the first that each asked nothing was cached, whoever had asked before.
        usage = json.loads(caller.received[0])["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        told = "".join(caller.received)
        assert caller.secret in told
        for other in callers:
            if other is not caller:
                for word in (other.secret, other.key, other.name, other.image[60:140]):
                    assert word not in told
        assert not INNER.search(told), INNER.search(told)
        assert str(ROOT) not in told
    return "".join(
        httpx2.get(live.url + path, headers={"api-key": callers[0].key}).text
        for path in ("/metrics", "/info", "/health", "/openapi.json", "/nowhere")
    )


def texts(status: int, body: str) -> dict[int, str]:
    """The answers by index, of a stream or not."""
    assert status == 200, body
    chunks = [body]
    if body.startswith("data: "):
        assert body.endswith("data: [DONE]\n\n")
        chunks = [event.removeprefix("data: ") for event in body.split("\n\n")[:-2]]
    found: dict[int, str] = {}
    for chunk in chunks:
        for choice in json.loads(chunk)["choices"]:
            part = choice.get("delta") or choice.get("message")
            found[choice["index"]] = found.get(choice["index"], "") + (part.get("content") or "")
    return found
