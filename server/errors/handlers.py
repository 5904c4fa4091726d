"""Exception handlers that turn every exception, except bugs, into an error response."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

import model
from server.errors.api_error import ApiError, error_response, short_name
from server.errors.translation import from_model_error

CLIENT_CLOSED = 499  # nginx's status for a disconnected client; only logs and metrics show it
METHODS = ("DELETE", "GET", "POST")  # that this server's routes have
HTTP_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    415: "unsupported_media_type",
}


def _methods(request: Request) -> list[str]:
    """The methods that are routed for a path; Starlette names only those of the first route."""
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] == Match.FULL
            for route in request.app.routes
        )
    ]


def install(app: FastAPI) -> None:
    """Give all errors of the app, including the framework's, the same shape.

    ``server.http.middleware.CatchBugs`` handles bugs.
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
            404: f"no route matches {path}; see /docs for the routes",
            405: f"method {short_name(request.method)} is not allowed for {path}",
        }.get(error.status_code, str(error.detail))
        headers = dict(error.headers or {})
        if error.status_code == 405:
            # HEAD is routed as GET, and OPTIONS is handled here for every path.
            allowed = ", ".join(_methods(request)).replace("GET", "GET, HEAD")
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
