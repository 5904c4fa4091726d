"""The exception for all error responses, and their body, which suits all clients.

See ``server.schemas.errors`` for the body's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fastapi.responses import JSONResponse

from server.schemas.errors import ErrorBody, ErrorDetail, ErrorObject

Loc = tuple[str | int, ...]
MOST_PROBLEMS = 10  # reported for one body
LARGEST_SHOWN_INPUT = 200  # characters, so that no error repeats a whole image
LONGEST_MESSAGE = 1500  # characters, so that no error repeats a whole grammar
LONGEST_SHOWN_NAME = 100  # characters of a name chosen by the client
LONGEST_SHOWN_PATH = 10  # steps; the schemas are not deeper
LARGEST_SHOWN_NUMBER = 2**64  # some clients cannot parse larger ones
ELLIPSIS = "..."


class Problem(NamedTuple):
    """An invalid field: its path in the body, its value, and what is wrong with it."""

    loc: Loc
    value: object
    message: str


def short_name(name: str) -> str:
    """Shorten a name chosen by the client for use in an error."""
    return name[:LONGEST_SHOWN_NAME]


def short_path(loc: Loc) -> Loc:
    """Shorten a path in the body for use in an error."""
    return tuple(
        short_name(step) if isinstance(step, str) else step for step in loc[:LONGEST_SHOWN_PATH]
    )


def clipped(message: str) -> str:
    """Shorten a message for responses and logs."""
    if len(message) <= LONGEST_MESSAGE:
        return message
    return message[: LONGEST_MESSAGE - len(ELLIPSIS)] + ELLIPSIS


class ApiError(Exception):
    """An error response; raise it, or send it with ``error_response``.

    Args:
        status: HTTP status.
        code: machine-readable code, also in ``x-ms-error-code``.
        message: a sentence that names the field, the limit and the remedy; clipped if too long.
        loc: path of the field in the body, without ``body`` itself.
        value: the field's value.
        headers: additional response headers.
        problems: all invalid fields, if there are several.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        loc: Loc = (),
        value: object = None,
        headers: dict[str, str] | None = None,
        problems: Sequence[Problem] = (),
    ) -> None:
        message = clipped(message)
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.loc = short_path(loc)
        self.headers = headers or {}
        self.problems = [
            problem._replace(message=clipped(problem.message))
            for problem in problems or [Problem(self.loc, value, message)]
        ]


def error_body(error: ApiError) -> dict[str, Any]:
    """The JSON body of an error."""
    param = dotted(error.loc) or None
    detail = [
        ErrorDetail(
            loc=["body", *problem.loc],
            input=_shown(problem.value),
            msg=problem.message,
            type=error.code,
        )
        for problem in error.problems
    ]
    body = ErrorBody(
        error=ErrorObject(
            code=error.code,
            message=error.message,
            type=_openai_type(error.status),
            param=param,
            target=param,
            status=error.status,
        ),
        status=error.status,
        code=error.code,
        message=error.message,
        detail=detail if error.status in (400, 422) else [],
    )
    return body.model_dump()


def error_response(error: ApiError) -> JSONResponse:
    """The error as a response."""
    headers = {**error.headers, "x-ms-error-code": error.code}
    return JSONResponse(error_body(error), error.status, headers)


def _openai_type(status: int) -> str:
    """OpenAI's ``error.type``; LiteLLM treats ``invalid_request_error`` as a bad request, even on a 401."""
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def dotted(loc: Loc) -> str:
    """A path in dotted form: ``messages.0.content``."""
    return ".".join(map(str, loc))


def _shown(value: object) -> object:
    """The offending value if it is small; for a list or object, only its size."""
    if isinstance(value, int) and abs(value) > LARGEST_SHOWN_NUMBER:
        value = str(value)
    if isinstance(value, str) and len(value) > LARGEST_SHOWN_INPUT:
        return value[:LARGEST_SHOWN_INPUT] + ELLIPSIS
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return type(value).__name__
