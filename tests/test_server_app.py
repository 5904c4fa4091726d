"""The OpenAPI document: complete enough to be followed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2

from live_server import LiveServer


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
