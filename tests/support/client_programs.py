"""The programs that make calls with clients, run in their environments, and what became of the calls.

What a client tells its user is compared with what the server answers to a plain request.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.client_environments import CLIENTS, node_directory, python_with
from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.wire import chart, chat

MAX_TOKENS = 256  # as the programs say


class Row(NamedTuple):
    """A client: the environment and the program that run it, and what its errors are called."""

    environment: str | None
    program: str
    client: str
    errors: tuple[str, str]

    def __str__(self) -> str:
        return "-".join([self.program.partition(".")[0], self.environment or "own", self.client])


@cache
def results(environment: str | None, program: str, url: str) -> dict[str, Any]:
    """What the program's clients returned and raised; a program is run once for all its cells."""
    command: list[str | Path]
    if environment == "node":
        command = ["node", node_directory() / program]
    else:
        python = Path(sys.executable) if environment is None else python_with(environment)
        command = [python, CLIENTS / program]
    done = subprocess.run(
        [*command, url, API_KEY, chart()],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # or it looks for one online
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def returned(row: Row, cell: str, server: LiveServer) -> Any:
    outcome = results(row.environment, row.program, server.url)[row.client][cell]
    assert "returned" in outcome, outcome["traceback"]
    return outcome["returned"]


def raised(row: Row, cell: str, server: LiveServer) -> Any:
    outcome = results(row.environment, row.program, server.url)[row.client][cell]
    assert "raised" in outcome, f"returned {outcome}"
    return outcome


def plain(server: LiveServer, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The answer to the programs' question, without any client."""
    content: Any = [*parts] if parts else "How many languages are in the world?"
    messages = [{"role": "user", "content": content}]
    answer = chat(server, messages=messages, temperature=0, max_tokens=MAX_TOKENS, **more).json()
    return {
        "text": answer["choices"][0]["message"]["content"],
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "completion_tokens": answer["usage"]["completion_tokens"],
    }


def plain_image(server: LiveServer, **more: Any) -> dict[str, Any]:
    """The answer to the programs' question about their image, without any client."""
    picture = {"type": "image_url", "image_url": {"url": chart()}}
    answer = plain(server, {"type": "text", "text": "What is in this image?"}, picture, **more)
    assert answer["prompt_tokens"] > 700  # the tiny checkpoint takes four crops
    return answer


def check_pet(pet: Any) -> None:
    """That it fits the schema which the programs ask for."""
    assert pet.keys() == {"kind", "age"}
    assert pet["kind"] in ("cat", "dog")
    assert 0 <= pet["age"] <= 30
