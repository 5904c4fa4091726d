"""``/openapi.json`` is complete and true: schemathesis finds no answer that it does not document."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


@pytest.fixture(scope="module")
def document(server: LiveServer) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(f"{server.url}/openapi.json").json()
    return found


def test_all_references_lead_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    names = ("ChatCompletionRequest", "ChatCompletionChunk", "TokenizeRequest", "ErrorBody")
    assert {f"#/components/schemas/{name}" for name in names} <= found
    for reference in found:
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_requests_are_described_as_they_are_taken(document: dict[str, Any]) -> None:
    parameters = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert {"messages", "temperature", "logit_bias", "top_k"} <= parameters.keys()
    kinds = [kind["type"] for kind in parameters["temperature"]["anyOf"]]
    assert kinds == ["number", "string", "null"]
    assert parameters["temperature"]["anyOf"][0]["maximum"] == 2
    assert [kind.get("type") for kind in parameters["stop"]["anyOf"]] == ["string", "array", "null"]
    assert "text" in parameters["response_format"]["anyOf"][0]["enum"]


def test_every_operation_behind_the_key_says_so(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            open_to_all = path.startswith("/health")
            assert ("401" in operation["responses"]) != open_to_all, path
            assert bool(operation.get("security")) != (open_to_all or path == "/metrics"), path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_answer_is_documented(tiny: Path, tmp_path: Path) -> None:
    """Thousands of requests, good and bad: no 5xx, no answer out of shape, no bad one let in.

    Left out: that all that fits the schema is accepted, as no schema can say what a readable image
    is; and that one wrong credential suffices for a 401, as clients send two and either may do.
    """
    limits = ("--max-model-len", "512", "--max-output-tokens", "4")
    live = start_server("--model", str(tiny), "--api-key", API_KEY, *limits)
    try:
        done = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("st")), "run", f"{live.url}/openapi.json"),
                *("--header", f"api-key: {API_KEY}", "--seed", "1", "--max-examples", "20"),
                *("--checks", "all", "--warnings", "off"),
                *("--exclude-checks", "positive_data_acceptance,ignored_auth"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
        )
    finally:
        assert live.stop() == 0
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    passed = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) > 1000
    check_log("".join(live.log))
