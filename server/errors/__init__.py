"""Error responses: one exception, one body shape, a constructor for each kind."""

from server.errors.api_error import (
    LONGEST_MESSAGE,
    LONGEST_SHOWN_PATH,
    MOST_PROBLEMS,
    ApiError,
    Loc,
    dotted,
    error_body,
    error_response,
    short_name,
    short_path,
)
from server.errors.handlers import CLIENT_CLOSED, install
from server.errors.kinds import (
    internal_error,
    invalid_json,
    invalid_parameter,
    not_supported,
    retry_after,
    too_large,
    too_many_requests,
    too_slow,
    unauthorized,
    unavailable,
    unsupported_media_type,
)
from server.errors.openapi import responses
from server.errors.translation import from_model_error, from_validation_error

__all__ = [
    "CLIENT_CLOSED",
    "LONGEST_MESSAGE",
    "LONGEST_SHOWN_PATH",
    "MOST_PROBLEMS",
    "ApiError",
    "Loc",
    "dotted",
    "error_body",
    "error_response",
    "from_model_error",
    "from_validation_error",
    "install",
    "internal_error",
    "invalid_json",
    "invalid_parameter",
    "not_supported",
    "responses",
    "retry_after",
    "short_name",
    "short_path",
    "too_large",
    "too_many_requests",
    "too_slow",
    "unauthorized",
    "unavailable",
    "unsupported_media_type",
]
