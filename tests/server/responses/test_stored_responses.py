"""Stored responses of a live server: whose they are, and servers that store little or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.servers.live_server import LiveServer, check_log, start_server
from tests.support.servers.wire import check_error, data_url, png


@pytest.fixture(scope="module")
def small(tiny: Path) -> Iterator[LiveServer]:
    """A server of two callers whose bodies are small."""
    live = start_server(
        *("--model", str(tiny), "--dtype", "float32", "--max-body-mb", "0.02"),
        *("--max-messages", "6", "--response-store-memory", "0.0001"),
        PHI3V_API_KEYS='alice = "key-of-alice"\nbob = "key-of-bob"\n',
    )
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


def create(server: LiveServer, caller: str = "alice", **body: Any) -> httpx2.Response:
    body = {"input": "hello", "max_output_tokens": 2, "temperature": 0, **body}
    headers = {"api-key": f"key-of-{caller}"}
    return httpx2.post(f"{server.url}/v1/responses", json=body, headers=headers, timeout=60)


def ask(server: LiveServer, method: str, path: str, caller: str) -> httpx2.Response:
    headers = {"api-key": f"key-of-{caller}"}
    return httpx2.request(method, f"{server.url}/v1/responses/{path}", headers=headers)


def test_other_callers_responses_are_unknown(small: LiveServer) -> None:
    own = create(small).json()["id"]
    unknown = "resp_" + "0" * 32
    for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        refused = [ask(small, method, f"{name}{rest}", "bob") for name in (own, unknown)]
        check_error(refused[0], 404, "not_found", [])
        assert refused[0].text.replace(own, unknown) == refused[1].text
    refused = [create(small, "bob", previous_response_id=name) for name in (own, unknown)]
    check_error(refused[0], 404, "previous_response_not_found", ["previous_response_id"])
    assert refused[0].text.replace(own, unknown) == refused[1].text
    item = ask(small, "GET", f"{own}/input_items", "alice").json()["data"][0]["id"]
    check_error(
        create(small, "bob", input=[{"id": item}]), 404, "item_not_found", ["input", 0, "id"]
    )
    assert create(small, input=[{"id": item}]).status_code == 200
    twice = create(small, input=[{"id": item}, {"id": item}])
    check_error(twice, 422, "invalid_parameter", ["input", 1, "id"])
    assert ask(small, "GET", own, "alice").status_code == 200


def test_a_conversation_may_go_on_without_input(small: LiveServer) -> None:
    one = create(small, input="short").json()["id"]
    headers = {"api-key": "key-of-alice"}
    body = {"previous_response_id": one, "max_output_tokens": 2}
    two = httpx2.post(f"{small.url}/v1/responses", json=body, headers=headers).json()["id"]
    assert ask(small, "GET", f"{two}/input_items", "alice").json()["data"] == []
    assert create(small, previous_response_id=two).status_code == 200


def test_a_conversation_is_bounded_like_a_body(small: LiveServer) -> None:
    long = create(small, input="word " * 1500)
    for _ in range(2):
        long = create(small, input="word " * 1500, previous_response_id=long.json()["id"])
    check_error(long, 413, "request_too_large", [])
    many = create(small)
    for _ in range(6):
        if many.status_code == 200:
            many = create(small, previous_response_id=many.json()["id"])
    check_error(many, 422, "invalid_parameter", ["input"])
    assert "--max-messages" in many.json()["message"]


def test_the_store_is_bounded(small: LiveServer) -> None:
    """107 kB hold about ten responses with such images."""
    image = {"type": "input_image", "image_url": data_url(png(40, 30) + bytes(6000))}
    message = [{"role": "user", "content": [{"type": "input_text", "text": "?"}, image]}]
    names = [create(small, input=message).json()["id"] for _ in range(16)]
    there = [ask(small, "GET", name, "alice").status_code for name in names]
    assert there[0] == 404
    assert there[-1] == 200
    assert there == sorted(there, reverse=True)
    assert create(small, previous_response_id=names[-1]).status_code == 200


def test_a_server_that_stores_nothing(tiny: Path) -> None:
    live = start_server(
        "--model", str(tiny), "--no-response-store", PHI3V_API_KEYS='alice = "key-of-alice"'
    )
    try:
        response = create(live).json()
        assert response["store"] is False
        assert ask(live, "GET", response["id"], "alice").status_code == 404
        refused = create(live, previous_response_id=response["id"])
        check_error(refused, 422, "parameter_not_supported", ["previous_response_id"])
        assert "--no-response-store" in refused.json()["message"]
        item = response["output"][0]["id"]
        refused = create(live, input=[{"type": "item_reference", "id": item}])
        check_error(refused, 422, "parameter_not_supported", ["input", 0, "id"])
    finally:
        assert live.stop() == 0
    check_log("".join(live.log))
