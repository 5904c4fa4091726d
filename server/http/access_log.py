"""The access log: one line per request, without its content."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import model
from server.errors import CLIENT_CLOSED, from_model_error, short_name
from server.http.exchange import UNMATCHED, Completion, Exchange, exchange_of, open_exchange
from server.telemetry import logs
from server.telemetry.traces import TracedCompletion

logger = logging.getLogger(__name__)

CountRequest = Callable[[str, int], None]
TraceRequest = Callable[[Scope, str, dict[str, Any], TracedCompletion | None], None]


class NoteRoute:
    """Records the matched route, which outer middleware cannot see in its own scope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        try:
            await self._app(scope, receive, send)
        finally:
            route = scope.get("route")
            if scope["type"] == "http" and route is not None:
                exchange_of(scope).route = getattr(route, "path", UNMATCHED)


class AccessLog:
    """Opens each request's exchange; logs, counts and traces the request when its response ends.

    Args:
        app: the wrapped application.
        count: called with each request's route and status.
        trace: called with each request's scope, route, log fields and completion.
    """

    def __init__(
        self, app: ASGIApp, count: CountRequest, trace: TraceRequest | None = None
    ) -> None:
        self._app = app
        self._count = count
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = open_exchange(scope)
        started = time.perf_counter()
        status = CLIENT_CLOSED  # until a response starts
        error_code: str | None = None

        async def send_and_note(message: Message) -> None:
            nonlocal status, error_code
            if message["type"] == "http.response.start":
                status = message["status"]
                error_code = Headers(raw=message["headers"]).get("x-ms-error-code")
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            if not exchange.relayed:
                self._log(scope, exchange, status, error_code, started)

    def _log(
        self,
        scope: Scope,
        exchange: Exchange,
        status: int,
        error_code: str | None,
        started: float,
    ) -> None:
        self._count(exchange.route, status)
        completion = exchange.completion
        method, path = short_name(scope["method"]), short_name(scope["path"])
        described = logs.fields(
            request_id=exchange.request_id,
            caller=exchange.caller,
            method=method,
            path=path,
            status=status,
            **({} if completion is None else _generated(completion.generation, started)),
            total_seconds=round(time.perf_counter() - started, 6),
        )
        if error_code is not None:
            described["fields"]["error_code"] = error_code
        logger.info("request", extra=described)
        if self._trace is not None:
            traced = None if completion is None else _traced(completion)
            self._trace(scope, exchange.route, described["fields"], traced)


def _generated(generation: model.Generation, started: float) -> dict[str, Any]:
    """The log fields of a completion."""
    first, error = generation.first_token_at, generation.error
    reasons = dict.fromkeys(generation.finish_reasons) if error is None else ["error"]
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "cached_tokens": generation.cached_tokens,
        "time_to_first_token_seconds": None if first is None else round(first - started, 6),
        "finish_reason": ",".join(reasons),
        "error_code": None if error is None else from_model_error(error).code,
    }


def _traced(completion: Completion) -> TracedCompletion:
    generation, envelope = completion.generation, completion.envelope
    return TracedCompletion(
        envelope.model, envelope.id, generation.finish_reasons, generation.error is not None
    )
