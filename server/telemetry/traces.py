"""Traces of requests, sent to an OpenTelemetry collector: the log's fields of each as a span. No content.

Its packages are an extra and imported only where a collector is named. The SDK reads the ``OTEL_*``
variables that are its own: the service's name, headers for the collector, sampling.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

SERVICE = "phi3v-server"
SECONDS_TO_FINISH = 5.0  # for the last spans; a collector that is down keeps nobody waiting
# Of the log's fields. OpenTelemetry's names, and vLLM's where it has none.
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
    """Traces cannot be sent; the message says why."""


class TracedCompletion(NamedTuple):
    """What a span says of a chat completion.

    Attributes:
        model: its name.
        id: of the completion.
        finish_reasons: of its choices.
        failed: whether the engine failed at it.
    """

    model: str
    id: str
    finish_reasons: Sequence[str]
    failed: bool


def open_traces(endpoint: str | None) -> Traces | None:
    """Traces to a collector, where one is named; raises TracesError."""
    return Traces(endpoint) if endpoint else None


class Traces:
    """Makes a span of each POST and sends them from a thread of its own.

    Args:
        endpoint: of a collector that takes OTLP over HTTP, such as ``http://localhost:4318``.

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
                "run pip install '.[otel]' in the source directory"
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
        """Make a span of a request that has ended, below the one that its ``traceparent`` names.

        Args:
            scope: the request's.
            route: its template.
            values: what the log says of it.
            completion: of a chat request that the engine has taken.
        """
        if scope["method"] != "POST":  # nobody traces what scrapes and probes
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
        """Send what is left, for a few seconds at most."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(SECONDS_TO_FINISH)
