"""Constructors for errors that are raised in more than one place."""

from __future__ import annotations

import math

from server.errors.api_error import ApiError, Loc


def retry_after(seconds: float = 1.0) -> dict[str, str]:
    """The ``Retry-After`` header; at least one second."""
    return {"Retry-After": str(math.ceil(seconds) or 1)}


def invalid_json(message: str) -> ApiError:
    """400: the body is not JSON."""
    return ApiError(400, "invalid_json", message)


def unauthorized(message: str, challenge: str = "Bearer") -> ApiError:
    """401: no valid key or token; ``challenge`` is the value of ``WWW-Authenticate``."""
    return ApiError(401, "Unauthorized", message, headers={"WWW-Authenticate": challenge})


def too_slow(part: str, seconds: float) -> ApiError:
    """408: the request arrives too slowly; ``part`` is ``head`` or ``body``."""
    reason = f"the request's {part} took longer to arrive than the limit of {seconds:g} seconds"
    return ApiError(408, "request_timeout", f"{reason}; send it without pauses")


def too_large(message: str) -> ApiError:
    """413: the body is larger than the limit."""
    return ApiError(413, "request_too_large", message)


def unsupported_media_type(message: str) -> ApiError:
    """415: the body is not plain JSON."""
    return ApiError(415, "unsupported_media_type", message)


def invalid_parameter(message: str, loc: Loc = (), value: object = None) -> ApiError:
    """422: a parameter is invalid; ``loc`` and ``value`` as in ``ApiError``."""
    return ApiError(422, "invalid_parameter", message, loc, value)


def not_supported(message: str, loc: Loc, value: object) -> ApiError:
    """422: the model or this API does not support a parameter."""
    return ApiError(422, "parameter_not_supported", message, loc, value)


def too_many_requests(message: str) -> ApiError:
    """429: a temporary limit is reached."""
    return ApiError(429, "too_many_requests", message, headers=retry_after())


def internal_error(message: str) -> ApiError:
    """500: a bug."""
    return ApiError(500, "internal_error", message)


def unavailable(message: str) -> ApiError:
    """503: the server cannot take the request now."""
    return ApiError(503, "overloaded", message, headers=retry_after())
