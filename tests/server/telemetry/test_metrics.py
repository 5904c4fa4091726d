"""The engine's numbers as Prometheus and the usage of answers show them."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import httpx2
import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.support.servers.live_server import API_KEY, ROOT, LiveServer, start_server

HEADERS = {"api-key": API_KEY}
DEPLOY = ROOT / "scripts" / "deploy"


def families(server: LiveServer) -> list[Metric]:
    request = urllib.request.Request(
        f"{server.url}/metrics", headers={"Authorization": f"Bearer {API_KEY}"}
    )
    with urllib.request.urlopen(request) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        return list(text_string_to_metric_families(response.read().decode()))


def numbers(server: LiveServer) -> dict[str, float]:
    """The samples without labels."""
    samples = [sample for family in families(server) for sample in family.samples]
    return {sample.name: sample.value for sample in samples if not sample.labels}


def counted(server: LiveServer, name: str) -> Counter[tuple[str, ...]]:
    """A counter's values by its labels' values."""
    return Counter(
        {
            tuple(sample.labels.values()): int(sample.value)
            for family in families(server)
            for sample in family.samples
            if sample.name == name
        }
    )


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

    assert grown("prefix_cache_hits_total") == second["cached_tokens"]
    assert grown("prompt_tokens_total") == 2 * first["prompt_tokens"]
    assert grown("generation_tokens_total") == 6
    assert grown("time_to_first_token_seconds_count") == 2
    assert grown("inter_token_latency_seconds_count") == 4
    assert grown("e2e_request_latency_seconds_count") == 2
    assert grown("request_queue_time_seconds_count") == 2
    assert grown("prefix_cache_queries_total") == 2 * first["prompt_tokens"]
    assert (after["phi3v_num_requests_running"], after["phi3v_kv_cache_usage_perc"]) == (0, 0)


def test_the_key_is_needed(server: LiveServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.url}/metrics")


def test_a_fresh_server_has_counted_nothing(tiny: Path) -> None:
    server = start_server("--model", str(tiny), "--api-key", API_KEY)
    try:
        found = numbers(server)
        assert found["phi3v_prompt_tokens_total"] == 0
        counts = {
            name: value
            for name, value in found.items()
            if name.startswith("phi3v_") and name.endswith(("_total", "_count", "_sum"))
        }
        assert len(counts) > 15
        assert not any(counts.values()), counts
        assert not any(counted(server, "phi3v_request_success_total").values())
    finally:
        assert server.stop() == 0


def test_caches_switched_off_and_metrics_opened(tiny: Path) -> None:
    off = ("--no-prefix-caching", "--embedding-cache-memory", "0", "--open-metrics")
    server = start_server("--model", str(tiny), "--api-key", API_KEY, *off)
    try:
        assert [ask(server, 40 * "again ")["cached_tokens"] for _ in range(2)] == [0, 0]
        with urllib.request.urlopen(f"{server.url}/metrics") as response:
            assert b"phi3v_num_requests_running" in response.read()
    finally:
        assert server.stop() == 0


def test_requests_by_route_and_status(server: LiveServer) -> None:
    """Routes by their templates: clients cannot make series by making up paths."""
    before = counted(server, "phi3v_http_requests_total")
    for number in range(3):
        httpx2.get(f"{server.url}/made-up/{number}", headers=HEADERS)
        httpx2.get(f"{server.url}/v1/models/{number}", headers=HEADERS)
        url = f"{server.url}/openai/deployments/{number}/chat/completions"
        httpx2.post(url, json={}, headers=HEADERS)
        httpx2.post(url, json={})
        httpx2.request("MADE-UP", f"{server.url}/info")
    grown = counted(server, "phi3v_http_requests_total") - before
    grown.pop(("/metrics", "200"))
    deployment = "/openai/deployments/{deployment}/chat/completions"
    assert grown == {
        ("unmatched", "404"): 3,
        ("/v1/models/{model_id:path}", "404"): 3,
        (deployment, "422"): 3,
        (deployment, "401"): 3,
        ("/info", "405"): 3,
    }


def test_answers_by_how_they_ended(server: LiveServer) -> None:
    before = counted(server, "phi3v_request_success_total")
    ask(server, "hello")
    grown = counted(server, "phi3v_request_success_total") - before
    assert grown == {("length",): 1}


def test_the_process_is_measured_too(server: LiveServer) -> None:
    found = numbers(server)
    assert found["process_resident_memory_bytes"] > 1e7
    assert found["process_open_fds"] > 3


def test_all_names_of_our_own_have_the_prefix(server: LiveServer) -> None:
    names = {family.name for family in families(server)}
    assert {name for name in names if not name.startswith(("phi3v_", "process_"))} == set()


def test_the_dashboard_asks_for_what_there_is(server: LiveServer) -> None:
    ask(server, "hello")  # so that all has happened once
    found = {sample.name for family in families(server) for sample in family.samples}
    text = (DEPLOY / "grafana-dashboard.json").read_text("utf-8")
    panels = json.loads(text)["panels"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"\b(?:phi3v|process)_\w+", target["expr"])
    }
    assert len(asked) > 15
    assert asked - found == set()
    assert set(re.findall(r"label_values\((\w+),", text)) <= found


def test_prometheus_is_sent_to_the_metrics(server: LiveServer) -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert httpx2.get(server.url + job["metrics_path"], headers=HEADERS).status_code == 200
