"""Lines of a batch that ask for responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.server.batch.jobs import by_id, command, image_message, request, run, write
from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import AUTHORIZED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
URL = "/v1/responses"
BODY = {"input": "hello", "max_output_tokens": 12, "temperature": 0}


def image_input() -> list[dict[str, Any]]:
    (message,) = image_message()
    url = message["content"][1]["image_url"]["url"]
    parts = [{"type": "input_text", "text": "and?"}, {"type": "input_image", "image_url": url}]
    return [{"role": "user", "content": parts}]


def test_results_are_what_the_server_answers(
    tiny: Path, server: LiveServer, tmp_path: Path
) -> None:
    good = [
        BODY,
        {**BODY, "instructions": "be kind", "seed": 7, "temperature": 1, "metadata": {"a": "b"}},
        {**BODY, "input": image_input()},
        {**BODY, "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    ]
    bad = [{**BODY, "temperature": 9}, {**BODY, "tools": [{"type": "web_search"}]}, {}]
    unstored = {**BODY, "previous_response_id": "resp_1"}
    streamed = {**BODY, "stream": True}
    bodies = [*good, *bad, unstored, streamed]
    lines = [request(f"line {number}", each, url=URL) for number, each in enumerate(bodies)]
    write(tmp_path / "in.jsonl", [*lines, request("chat", {"messages": BODY["input"]}, url=URL)])
    done = run(command(tiny, tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 answered, 6 failed, 0 left, 0 by earlier runs; 48 tokens ")
    found = by_id(tmp_path)
    for number, body in enumerate([*good, *bad]):
        answer = httpx2.post(server.url + URL, json=body, headers=AUTHORIZED, timeout=120)
        response = found[f"line {number}"]["response"]
        assert response["status_code"] == answer.status_code
        assert same(response["body"]) == same(answer.json())
    for number, word in ((7, "previous_response_id"), (8, "stream")):
        error = found[f"line {number}"]["error"]
        assert error["code"] == "parameter_not_supported"
        assert error["message"].startswith(word)


def same(answer: dict[str, Any]) -> dict[str, Any]:
    """What of a response depends on its request alone."""
    for item in answer.get("output", []):
        assert item.pop("id")
    if "usage" in answer:
        del answer["usage"]["input_tokens_details"]["cached_tokens"]
    other = ("id", "created_at", "completed_at", "store")
    return {key: value for key, value in answer.items() if key not in other}
