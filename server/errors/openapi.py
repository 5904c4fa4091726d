"""What the OpenAPI document says of errors."""

from __future__ import annotations

from typing import Any

from server.schemas.errors import ErrorBody

DESCRIPTIONS = {
    400: "not JSON, an extra parameter, or a prompt longer than the context window",
    401: "no API key or token, or a wrong one",
    403: "the token lacks the roles and scopes that are asked for; or, where no key is asked for, "
    "the host or the page's origin is not allowed",
    404: "no such model",
    408: "the request or its answer took longer than the limit",
    413: "the body is larger than the limit",
    415: "the body is not JSON, or is compressed",
    422: "a parameter or message is wrong or not supported; detail says where",
    429: "too many answers are in the making, or the caller has used what it may",
    500: "the server failed; its log says why",
    503: "loading, shutting down, or dead; or the token's issuer is",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's ``responses`` for these statuses."""
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
