"""Errors on the wire: one class, one body shape, one table from the model's errors.

The body satisfies all clients at once, see ``server.schemas.errors``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import model
from server.schemas.errors import ErrorBody, ErrorDetail, ErrorObject

logger = logging.getLogger(__name__)

Loc = tuple[str | int, ...]
RETRY_AFTER = {"Retry-After": "1"}  # seconds, of answers that will be different soon
CLIENT_CLOSED = 499  # nginx's status for a client that went away; nobody reads it
MOST_PROBLEMS = 10  # shown of a body with many faults
LARGEST_SHOWN_INPUT = 200  # characters; an error never repeats a whole image
LONGEST_MESSAGE = 1500  # characters; an error never repeats a whole grammar
LONGEST_SHOWN_NAME = 100  # characters of a key that a client made up
LONGEST_SHOWN_PATH = 10  # steps; nothing that is defined here lies deeper
LARGEST_SHOWN_NUMBER = 2**64  # clients may not be able to read larger ones
ELLIPSIS = "..."
# What pydantic says in Python's words, in JSON's.
IN_JSON = {
    "model_type": "Input should be an object",
    "dict_type": "Input should be an object",
    "list_type": "Input should be a list",
}


class Problem(NamedTuple):
    """One field at fault: its path in the body, what was there, and what is wrong with it."""

    loc: Loc
    value: object
    message: str


def short_name(name: str) -> str:
    """A key, a path or the like of the client's making as errors repeat it."""
    return name[:LONGEST_SHOWN_NAME]


def short_path(loc: Loc) -> Loc:
    """A path in the body as errors repeat it."""
    return tuple(
        short_name(step) if isinstance(step, str) else step for step in loc[:LONGEST_SHOWN_PATH]
    )


def clipped(message: str) -> str:
    """A message as errors tell it, and logs."""
    if len(message) <= LONGEST_MESSAGE:
        return message
    return message[: LONGEST_MESSAGE - len(ELLIPSIS)] + ELLIPSIS


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: HTTP status.
        code: machine-readable, also in ``x-ms-error-code``.
        message: a sentence naming the field, the limit and the remedy; a long one is clipped.
        loc: path of the field in the body, without ``body`` itself.
        value: what was there.
        headers: further response headers.
        problems: every field at fault, when there is more than one.
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


# The first class in an error's MRO that is listed here decides.
MODEL_ERRORS: dict[type[model.ModelError], tuple[int, str]] = {
    model.ContextLengthError: (400, "context_length_exceeded"),
    model.TooManyImagesError: (422, "too_many_images"),
    model.ModalityError: (422, "modality_not_supported"),
    model.ImageError: (422, "invalid_image"),
    model.GrammarError: (422, "invalid_grammar"),
    model.RequestError: (422, "invalid_parameter"),
    model.OverloadedError: (429, "too_many_requests"),
    model.TookTooLongError: (408, "request_timeout"),
    model.EngineDeadError: (503, "engine_dead"),
    model.ModelError: (500, "internal_error"),
}

HTTP_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
}


def too_slow(part: str, seconds: float) -> ApiError:
    """What is said to a client whose request arrives too slowly; ``part`` is its head or body."""
    reason = f"the request's {part} took longer than {seconds:g} seconds, the limit here"
    return ApiError(408, "request_timeout", f"{reason}; send it at once")


def from_model_error(error: model.ModelError) -> ApiError:
    """The answer to an error of the model side."""
    status, code = next(MODEL_ERRORS[cls] for cls in type(error).__mro__ if cls in MODEL_ERRORS)
    if isinstance(error, model.RequestError):
        return ApiError(status, code, error.message, error.loc, error.value)
    headers = RETRY_AFTER if status in (429, 503) else {}
    if isinstance(error, model.TookTooLongError):
        headers = {"x-should-retry": "false"}  # OpenAI's clients would wait as long again, twice
    return ApiError(status, code, str(error), headers=headers)


def from_validation_error(error: ValidationError, body: object) -> ApiError:
    """The answer to a body that does not fit the schema; names every field at fault."""
    problems = []
    details = error.errors(include_url=False, include_context=False)
    for detail in details[:MOST_PROBLEMS]:
        missing = detail["type"] == "missing"
        loc = short_path(_path_in(body, detail["loc"], missing))
        reason = IN_JSON.get(detail["type"], detail["msg"].replace(" after validation", ""))
        message = f"{_dotted(loc)}: {reason}"
        problems.append(Problem(loc, None if missing else detail["input"], message))
    extra = details[0]["type"] == "extra_forbidden"
    return ApiError(
        422,
        "extra_forbidden" if extra else "invalid_parameter",
        "; ".join(dict.fromkeys(problem.message for problem in problems)),
        problems[0].loc,
        problems=problems,
    )


def error_body(error: ApiError) -> dict[str, Any]:
    """The body of an error, for all clients at once."""
    param = _dotted(error.loc) or None
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
    """What OpenAPI says of a route's errors."""
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


def install(app: FastAPI) -> None:
    """Give every error of the app, also the framework's own, the one shape; but for bugs.

    Those are answered by ``server.http.middleware``.
    """

    async def on_api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error_response(error)

    async def on_model_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, model.ModelError)
        return error_response(from_model_error(error))

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = HTTP_CODES.get(error.status_code, "http_error")
        path = short_name(request.url.path)
        message = {
            404: f"there is nothing at {path}; see /docs for the routes",
            405: f"{path} does not take {short_name(request.method)}",
        }.get(error.status_code, str(error.detail))
        headers = dict(error.headers or {})
        if error.status_code == 405:
            # HEAD is routed as GET, and OPTIONS is answered here for every path.
            allowed = headers.get("Allow", "").replace("GET", "GET, HEAD")
            headers["Allow"] = allowed
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"Allow": f"{allowed}, OPTIONS"})
        return error_response(ApiError(error.status_code, code, message, headers=headers))

    async def on_client_gone(_: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(model.ModelError, on_model_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ClientDisconnect, on_client_gone)


def _openai_type(status: int) -> str:
    """OpenAI's ``error.type``; LiteLLM takes ``invalid_request_error`` on a 401 for a bad request."""
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _path_in(body: object, loc: Iterable[str | int], missing: bool) -> Loc:
    """A pydantic location as a path in the body: without the names of union members."""
    path: list[str | int] = []
    steps = list(loc)
    for position, step in enumerate(steps):
        inside = (
            step in body
            if isinstance(body, dict)
            else isinstance(body, list) and isinstance(step, int) and step < len(body)
        )
        if inside:
            path.append(step)
            body = body[step]  # type: ignore[index]
        elif missing and position == len(steps) - 1:
            path.append(step)
    return tuple(path)


def _dotted(loc: Loc) -> str:
    return ".".join(map(str, loc))


def _shown(value: object) -> object:
    """The offending value, when it is small; of a list or an object only how large it is."""
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
