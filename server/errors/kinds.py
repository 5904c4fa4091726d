"""A constructor for each kind of error that is raised in more than one place."""

from __future__ import annotations

import math

from server.errors.api_error import ApiError, Loc


def retry_after(seconds: float = 1.0) -> dict[str, str]:
    """The header that says when to try again; at least a second from now."""
    return {"Retry-After": str(math.ceil(seconds) or 1)}


def invalid_json(message: str) -> ApiError:
    """400: the body is not JSON."""
    return ApiError(400, "invalid_json", message)


def unauthorized(message: str, challenge: str = "Bearer") -> ApiError:
    """401: no valid key or token; ``challenge`` is what ``WWW-Authenticate`` says."""
    return ApiError(401, "Unauthorized", message, headers={"WWW-Authenticate": challenge})


def too_slow(part: str, seconds: float) -> ApiError:
    """408: the request arrives too slowly; ``part`` is its head or body."""
    reason = f"the request's {part} took longer to arrive than the limit of {seconds:g} seconds"
    return ApiError(408, "request_timeout", f"{reason}; send it without pauses")


def too_large(message: str) -> ApiError:
    """413: the body has more bytes than the limit."""
    return ApiError(413, "request_too_large", message)


def unsupported_media_type(message: str) -> ApiError:
    """415: the body is not plain JSON."""
    return ApiError(415, "unsupported_media_type", message)


def invalid_parameter(message: str, loc: Loc = (), value: object = None) -> ApiError:
    """422: a parameter is wrong; ``loc`` and ``value`` as in ``ApiError``."""
    return ApiError(422, "invalid_parameter", message, loc, value)


def not_supported(message: str, loc: Loc, value: object) -> ApiError:
    """422: a parameter asks for what the model or this API does not do."""
    return ApiError(422, "parameter_not_supported", message, loc, value)


def too_many_requests(message: str) -> ApiError:
    """429: there is no room for the request now, and soon may be."""
    return ApiError(429, "too_many_requests", message, headers=retry_after())


def internal_error(message: str) -> ApiError:
    """500: a bug."""
    return ApiError(500, "internal_error", message)


def unavailable(message: str) -> ApiError:
    """503: the server takes no requests now, or not this one."""
    return ApiError(503, "overloaded", message, headers=retry_after())
