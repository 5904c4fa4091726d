"""The engine's numbers in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

import model

CONTENT_TYPE = CONTENT_TYPE_LATEST


def render(stats: model.Stats | None) -> bytes:
    """The text of ``/metrics``; nothing but a comment before the model is loaded."""
    if stats is None:
        return b"# the model is not loaded yet\n"
    registry = CollectorRegistry()
    registry.register(_Collector(stats))
    return generate_latest(registry)


class _Collector:
    """Names one snapshot's numbers."""

    def __init__(self, stats: model.Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats, totals = self._stats, self._stats.totals
        for name, help_text, value in (
            ("running", "Answers being computed.", stats.running),
            ("waiting", "Answers waiting to be computed.", stats.waiting),
            ("kv_blocks_used", "KV blocks that answers hold.", stats.blocks_used),
            ("kv_blocks_free", "KV blocks that no answer holds.", stats.blocks_free),
            ("kv_blocks_cached", "KV blocks that can be found by prefix.", stats.blocks_cached),
            ("kv_block_tokens", "Tokens in a KV block.", stats.block_size),
            ("image_embedding_bytes", "Memory of kept image embeddings.", stats.embedding_bytes),
        ):
            yield GaugeMetricFamily(f"phi3v_{name}", help_text, value)
        for name, help_text, value in (
            ("prompt_tokens", "Prompt tokens of answers begun.", totals.prompt_tokens),
            ("cached_prompt_tokens", "Of those, found computed.", totals.cached_tokens),
            ("generated_tokens", "Tokens generated.", totals.generated_tokens),
            ("forced_tokens", "Of them, forced by a grammar.", totals.forced_tokens),
            ("guessed_tokens", "Guessed by prompt lookup.", totals.guessed_tokens),
            ("guessed_right", "Of them, right.", totals.guessed_right),
            ("preemptions", "Answers that gave up their KV blocks.", stats.preemptions),
            (
                "regime_recomputes",
                "Answers computed again beyond the rope boundary.",
                stats.regime_recomputes,
            ),
            ("images", "Images computed by the vision tower.", stats.images_computed),
            ("image_embedding_hits", "Images not computed again.", stats.embedding_hits),
            ("failed_steps", "Steps that failed.", totals.failed_steps),
        ):
            yield CounterMetricFamily(f"phi3v_{name}", help_text, value)
        finished = CounterMetricFamily(
            "phi3v_answers", "Answers that ended, by how.", labels=["finish_reason"]
        )
        for reason, count in totals.finished.copy().items():
            finished.add_metric([reason], count)
        yield finished
        for name, help_text, histogram in (
            ("time_to_first_token_seconds", "From arrival to first token.", totals.ttft),
            ("inter_token_latency_seconds", "Between tokens of an answer.", totals.itl),
        ):
            yield _histogram(f"phi3v_{name}", help_text, histogram)


def _histogram(name: str, help_text: str, histogram: model.Histogram) -> Metric:
    buckets, so_far = [], 0
    bounds = [*map(str, model.SECONDS), "+Inf"]
    for bound, count in zip(bounds, histogram.counts, strict=True):
        so_far += count
        buckets.append((bound, so_far))
    return HistogramMetricFamily(name, help_text, buckets=buckets, sum_value=histogram.total)
