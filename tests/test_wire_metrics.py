"""The engine's numbers as Prometheus and the usage of answers show them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from live_server import API_KEY, LiveServer, start_server


def numbers(server: LiveServer) -> dict[str, float]:
    request = urllib.request.Request(
        f"{server.url}/metrics", headers={"Authorization": f"Bearer {API_KEY}"}
    )
    with urllib.request.urlopen(request) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        text = response.read().decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def ask(server: LiveServer, text: str) -> dict[str, int]:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 3, "temperature": 0}
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps({**body, "ignore_eos": True}).encode(),
        {"Content-Type": "application/json", "api-key": API_KEY},
    )
    with urllib.request.urlopen(request) as response:
        usage = json.load(response)["usage"]
    return {**usage, **usage["prompt_tokens_details"]}


def test_what_was_cached_shows_in_usage_and_metrics(server: LiveServer) -> None:
    before = numbers(server)
    text = "a prompt of its own, long enough for a block or two of sixteen tokens each"
    first, second = ask(server, text), ask(server, text)
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] == (second["prompt_tokens"] - 1) // 16 * 16 > 0
    after = numbers(server)

    def grown(name: str) -> float:
        return after[f"phi3v_{name}"] - before[f"phi3v_{name}"]

    assert grown("cached_prompt_tokens_total") == second["cached_tokens"]
    assert grown("prompt_tokens_total") == 2 * first["prompt_tokens"]
    assert grown("generated_tokens_total") == 6
    assert grown("time_to_first_token_seconds_count") == 2
    assert grown("inter_token_latency_seconds_count") == 4
    assert (after["phi3v_running"], after["phi3v_kv_blocks_used"]) == (0, 0)


def test_the_key_is_needed(server: LiveServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.url}/metrics")


def test_caches_switched_off_and_metrics_opened(tiny: Path) -> None:
    off = ("--no-prefix-caching", "--embedding-cache-memory", "0", "--open-metrics")
    server = start_server("--model", str(tiny), "--api-key", API_KEY, *off)
    try:
        assert [ask(server, 40 * "again ")["cached_tokens"] for _ in range(2)] == [0, 0]
        with urllib.request.urlopen(f"{server.url}/metrics") as response:
            assert b"phi3v_running" in response.read()
    finally:
        assert server.stop() == 0
