"""Traces requests with OpenTelemetry: one span per request with its log fields, without content.

The packages are an optional extra and imported only if a collector is configured. The SDK reads its
``OTEL_*`` variables: service name, collector headers, sampling.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

SERVICE = "phi3v-server"
SECONDS_TO_FINISH = 5.0  # for the last spans at exit, in case the collector is down
# From log fields to OpenTelemetry's attributes, or vLLM's where it defines none.
ATTRIBUTES = {
    "request_id": "gen_ai.request.id",
    "method": "http.request.method",
    "status": "http.response.status_code",
    "error_code": "error.type",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "time_to_first_token_seconds": "gen_ai.latency.time_to_first_token",
}


class TracesError(Exception):
    """Tracing is not available; the message says why."""


class TracedCompletion(NamedTuple):
    """A chat completion as recorded in a span.

    Attributes:
        model: name of the model.
        id: id of the completion.
        finish_reasons: finish reasons of its choices.
        failed: whether it failed in the engine.
    """

    model: str
    id: str
    finish_reasons: Sequence[str]
    failed: bool


def open_traces(endpoint: str | None) -> Traces | None:
    """Start tracing if a collector is configured; raises TracesError."""
    return Traces(endpoint) if endpoint else None


class Traces:
    """Records a span for each POST request and sends spans from a separate thread.

    Args:
        endpoint: a collector that accepts OTLP over HTTP, such as ``http://localhost:4318``.

    Raises:
        TracesError: the packages are not installed.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise TracesError(
                f"--otlp-endpoint needs the extra otel ({error.name} is not installed): "
                "run scripts/setup otel in the source directory"
            ) from error
        named = Resource.create({"service.name": SERVICE})
        self._provider = TracerProvider(
            resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(SERVICE)
        self._propagator = TraceContextTextMapPropagator()
        self._kind, self._failed = SpanKind.SERVER, StatusCode.ERROR

    def record(
        self,
        scope: Scope,
        route: str,
        values: dict[str, Any],
        completion: TracedCompletion | None,
    ) -> None:
        """Record a span for a finished request, as a child of the span in its ``traceparent``.

        Args:
            scope: the request's ASGI scope.
            route: the route's template.
            values: the request's log fields.
            completion: the completion of a chat request, if it reached the engine.
        """
        if scope["method"] != "POST":  # scrapes and probes are not worth tracing
            return
        attributes = {
            name: values[field]
            for field, name in ATTRIBUTES.items()
            if values.get(field) is not None
        }
        attributes["http.route"] = route
        if completion is not None:
            attributes |= {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": SERVICE,
                "gen_ai.response.model": completion.model,
                "gen_ai.response.id": completion.id,
                "gen_ai.response.finish_reasons": completion.finish_reasons,
            }
        end = time.time_ns()
        span = self._tracer.start_span(
            f"POST {route}",
            self._propagator.extract(Headers(scope=scope)),
            self._kind,
            attributes,
            start_time=end - int(values["total_seconds"] * 1e9),
        )
        if values["status"] >= 500 or (completion is not None and completion.failed):
            span.set_status(self._failed)
        span.end(end)

    def close(self) -> None:
        """Send the remaining spans, within a time limit."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(SECONDS_TO_FINISH)
