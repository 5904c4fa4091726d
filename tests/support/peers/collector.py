"""An OpenTelemetry collector of the tests' own, which keeps what is sent to it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.waiting import eventually


@dataclass
class Collector:
    """What was sent to it."""

    url: str = ""
    raw: list[bytes] = field(default_factory=list)
    services: set[str] = field(default_factory=set)
    spans: dict[str, Span] = field(default_factory=dict)  # by request id
    problems: list[str] = field(default_factory=list)

    def take(self, path: str, body: bytes) -> None:
        if path != "/v1/traces":
            self.problems.append(f"sent to {path}")
            return
        self.raw.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services.add(attributes(resource.resource)["service.name"])
            for scope in resource.scope_spans:
                for span in scope.spans:
                    name = attributes(span)["gen_ai.request.id"]
                    if name in self.spans:
                        self.problems.append(f"two spans of {name}")
                    self.spans[name] = span

    def span(self, request_id: str) -> Span:
        eventually(lambda: request_id in self.spans, what=f"a span of {request_id}")
        return self.spans[request_id]


def value(of: AnyValue) -> Any:
    if of.WhichOneof("value") == "array_value":
        return [value(each) for each in of.array_value.values]
    return getattr(of, of.WhichOneof("value") or "")


def attributes(of: Any) -> dict[str, Any]:
    return {each.key: value(each.value) for each in of.attributes}


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                found.take(self.path, body)
            except Exception as error:  # the thread's own, which nobody would hear of
                found.problems.append(repr(error))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        found.url = f"http://127.0.0.1:{listening.server_port}/"
        serving = threading.Thread(target=listening.serve_forever)
        serving.start()
        try:
            yield found
        finally:
            listening.shutdown()
            serving.join()
    assert not found.problems
