"""Error responses in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from server.schemas.errors import ErrorBody

DESCRIPTIONS = {
    400: "invalid JSON, an extra parameter, or a prompt longer than the context window",
    401: "missing or invalid API key or token",
    403: "the token lacks a required role or scope; or, on a server without authentication, the host "
    "or origin is not allowed",
    404: "model not found",
    408: "the request arrived too slowly, or the answer took longer than the limit",
    413: "the body is larger than the limit",
    415: "the body is not JSON, or is compressed",
    422: "invalid or unsupported parameter or message; `detail` says where",
    429: "too many requests in flight, or the caller has reached its rate limit",
    500: "internal error; see the server's log",
    503: "the server is loading, shutting down or dead, or the token issuer is unavailable",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` argument of a route with these error statuses."""
    code = {"x-ms-error-code": {"schema": {"type": "string"}, "description": "error.code"}}
    wait = {"Retry-After": {"schema": {"type": "string"}, "description": "seconds"}}
    return {
        status: {
            "model": ErrorBody,
            "description": DESCRIPTIONS[status],
            "headers": code | (wait if status in (429, 503) else {}),
        }
        for status in statuses
    }
