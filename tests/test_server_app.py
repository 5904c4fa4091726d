"""The application as a whole: its OpenAPI document, and paths as clients write them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from live_server import API_KEY, LiveServer


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_openapi_document(server: LiveServer) -> None:
    document = httpx2.get(f"{server.url}/openapi.json").json()
    assert {"/info", "/chat/completions", "/v1/chat/completions", "/v1/models", "/health"} <= set(
        document["paths"]
    )
    found = set(references(document))
    assert "#/components/schemas/ChatCompletionRequest" in found
    for reference in found:
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
    parameters = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert {"messages", "temperature", "logit_bias", "top_k"} <= parameters.keys()
    assert httpx2.get(f"{server.url}/docs").status_code == 200


@pytest.mark.parametrize("path", ["//info", "/info/", "//v1//models/", "/docs/", "//openapi.json"])
def test_slashes_may_be_doubled_and_trail(server: LiveServer, path: str) -> None:
    response = httpx2.get(server.url + path, headers={"api-key": API_KEY})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "path", ["//chat/completions", "/chat/completions/", "/v1//chat/completions"]
)
def test_a_post_with_odd_slashes(server: LiveServer, path: str) -> None:
    response = httpx2.post(
        server.url + path,
        json={"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1},
        headers={"api-key": API_KEY},
    )
    assert response.status_code == 200, response.text
