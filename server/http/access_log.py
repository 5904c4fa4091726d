"""One line for every request: who asked for what, what it took, and how it ended. No content.

Handlers leave what is known to them alone in the request's state: ``request_id``, ``caller``,
``generation``, ``envelope``; and ``relayed``, where the process that makes the answer logs it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import model
from server.errors import CLIENT_CLOSED, from_model_error, short_name
from server.telemetry import logs

logger = logging.getLogger(__name__)

UNMATCHED = "unmatched"  # the route of a path that has none

CountRequest = Callable[[str, int], None]
TraceRequest = Callable[[Scope, str, dict[str, Any]], None]


class NoteRoute:
    """Keeps the route that was found for those outside, which do not see the inner scope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        try:
            await self._app(scope, receive, send)
        finally:
            route = scope.get("route")
            if scope["type"] == "http" and route is not None:
                scope.setdefault("state", {})["route"] = getattr(route, "path", UNMATCHED)


class AccessLog:
    """Logs and counts requests when their answers end.

    Args:
        app: what answers them.
        count: told the route and the status of each.
        trace: told the scope and the route of each, and what is logged of it.
    """

    def __init__(
        self, app: ASGIApp, count: CountRequest, trace: TraceRequest | None = None
    ) -> None:
        self._app = app
        self._count = count
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; log it, whatever happens."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        started = time.perf_counter()
        status = CLIENT_CLOSED  # unless something is answered
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
            if not state.get("relayed"):
                self._note(scope, status, error_code, started)

    def _note(self, scope: Scope, status: int, error_code: str | None, started: float) -> None:
        state = scope["state"]
        route = state.get("route", UNMATCHED)
        self._count(route, status)
        method, path = short_name(scope["method"]), short_name(scope["path"])
        described = logs.fields(
            request_id=state.get("request_id"),
            caller=state.get("caller"),
            method=method,
            path=path,
            status=status,
            **_generated(state.get("generation"), started),
            total_seconds=round(time.perf_counter() - started, 6),
        )
        if error_code is not None:
            described["fields"]["error_code"] = error_code
        logger.info("request", extra=described)
        if self._trace is not None:
            self._trace(scope, route, described["fields"])


def _generated(generation: model.Generation | None, started: float) -> dict[str, Any]:
    """What is known of the answers to a request; nothing where it came to none."""
    if generation is None:
        return {}
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
