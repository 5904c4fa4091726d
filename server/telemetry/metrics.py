"""Metrics of the server and engine in the Prometheus text format, with vLLM's names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

import model

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counts requests and exports them with the metrics of the engine and the process.

    Args:
        stats: returns the engine's statistics; None until it is loaded.
    """

    def __init__(self, stats: Callable[[], model.Stats | None]) -> None:
        self._stats = stats
        self._requests: Counter[tuple[str, int]] = Counter()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def count_request(self, route: str, status: int) -> None:
        """Count a request by route and status. Routes are templates, to keep the number of labels small."""
        self._requests[route, status] += 1

    def render(self) -> bytes:
        """Render ``/metrics``; engine metrics are missing until the model is loaded."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Collect the current values; called by the registry."""
        requests = CounterMetricFamily(
            "phi3v_http_requests", "HTTP requests answered.", labels=["path", "status"]
        )
        for (route, status), count in self._requests.items():
            requests.add_metric([route, str(status)], count)
        yield requests
        stats = self._stats()
        if stats is not None:
            yield from _gauges(stats)
            yield from _counters(stats)
            yield from _histograms(stats.totals)

    def describe(self) -> list[Metric]:
        """Return nothing, so that the registry does not call ``collect`` on registration."""
        return []


def _gauges(stats: model.Stats) -> Iterator[Metric]:
    for name, help_text, value in (
        ("num_requests_running", "Number of sequences being computed.", stats.running),
        ("num_requests_waiting", "Number of sequences waiting to be scheduled.", stats.waiting),
        (
            "kv_cache_usage_perc",
            "KV cache usage. 1 means 100 percent usage.",
            stats.blocks_used / (stats.blocks_used + stats.blocks_free),
        ),
        ("kv_blocks_used", "KV blocks held by sequences.", stats.blocks_used),
        ("kv_blocks_free", "KV blocks not held by any sequence.", stats.blocks_free),
        ("kv_blocks_cached", "KV blocks in the prefix cache.", stats.blocks_cached),
        ("kv_block_tokens", "Tokens per KV block.", stats.block_size),
        ("image_embedding_bytes", "Bytes of cached image embeddings.", stats.embedding_bytes),
    ):
        yield GaugeMetricFamily(f"phi3v_{name}", help_text, value)


def _counters(stats: model.Stats) -> Iterator[Metric]:
    totals = stats.totals
    for name, help_text, value in (
        ("prompt_tokens", "Prompt tokens of started sequences.", totals.prompt_tokens),
        ("generation_tokens", "Tokens generated.", totals.generated_tokens),
        ("forced_tokens", "Generated tokens that were forced by a grammar.", totals.forced_tokens),
        (
            "prefix_cache_queries",
            "Prefix cache queries, in tokens.",
            totals.prompt_tokens,
        ),
        ("prefix_cache_hits", "Prefix cache hits, in tokens.", totals.cached_tokens),
        ("spec_decode_num_draft_tokens", "Tokens guessed by prompt lookup.", totals.guessed_tokens),
        (
            "spec_decode_num_accepted_tokens",
            "Guessed tokens that were accepted.",
            totals.guessed_right,
        ),
        ("num_preemptions", "Preemptions of sequences.", stats.preemptions),
        (
            "regime_recomputes",
            "Sequences recomputed when crossing the LongRoPE boundary.",
            stats.regime_recomputes,
        ),
        ("images", "Images encoded by the vision tower.", stats.images_computed),
        ("image_embedding_hits", "Image embedding cache hits.", stats.embedding_hits),
        ("failed_steps", "Engine steps that failed.", totals.failed_steps),
    ):
        yield CounterMetricFamily(f"phi3v_{name}", help_text, value)
    finished = CounterMetricFamily(
        "phi3v_request_success", "Finished sequences, by finish reason.", labels=["finish_reason"]
    )
    for reason, count in totals.finished.copy().items():
        finished.add_metric([reason], count)
    yield finished


def _histograms(totals: model.Totals) -> Iterator[Metric]:
    for name, help_text, histogram in (
        ("time_to_first_token_seconds", "Time to first token in seconds.", totals.ttft),
        (
            "inter_token_latency_seconds",
            "Time between tokens of a sequence in seconds.",
            totals.itl,
        ),
        ("e2e_request_latency_seconds", "End-to-end request latency in seconds.", totals.e2e),
        (
            "request_queue_time_seconds",
            "Time in the queue before the first step in seconds.",
            totals.queued,
        ),
    ):
        buckets, so_far = [], 0
        bounds = [*map(str, model.SECONDS), "+Inf"]
        for bound, count in zip(bounds, histogram.counts, strict=True):
            so_far += count
            buckets.append((bound, so_far))
        yield HistogramMetricFamily(
            f"phi3v_{name}", help_text, buckets=buckets, sum_value=histogram.total
        )
