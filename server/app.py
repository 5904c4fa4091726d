"""The ASGI application: routes, error handlers and middleware."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from server import __version__, errors
from server.auth.limits import RATE_LIMIT_HEADERS
from server.chat.parameters import IGNORED_HEADER
from server.http.access_log import AccessLog, CountRequest, NoteRoute, TraceRequest
from server.http.cross_site_guard import CrossSiteGuard
from server.http.middleware import (
    REQUEST_IDS,
    CatchBugs,
    HeadAsGet,
    PlainPaths,
    RateLimits,
    ReadBeforeRefusing,
    RequestIds,
)
from server.responses.store import ResponseStore
from server.routes import chat, docs, health, info, playground, responses, tokenize
from server.routes import metrics as metrics_route
from server.schemas.requests import ChatCompletionRequest, DetokenizeRequest, TokenizeRequest
from server.schemas.responses import ChatCompletionChunk
from server.schemas.responses_events import ResponseStreamEvent
from server.schemas.responses_request import ResponsesRequest
from server.service import Service
from server.settings import Settings
from server.telemetry import metrics
from server.telemetry.traces import Traces

READABLE_BY_SCRIPTS = (
    *(*REQUEST_IDS, *RATE_LIMIT_HEADERS),
    *("x-ms-error-code", "Retry-After", IGNORED_HEADER),
)


def create_app(
    service: Service,
    traces: Traces | None = None,
    faces_browsers: bool = True,
    replica: str = "",
) -> FastAPI:
    """Create the application.

    Args:
        service: the model and its callers.
        traces: where to record requests, if tracing is enabled.
        faces_browsers: whether clients connect to it directly; if not, a gateway in front of it handles
            CORS and the cross-site guard.
        replica: its name if there are several, each of which stores its own responses.
    """
    app = FastAPIOffline(  # serves the files of /docs itself
        title="Phi-3-vision",
        version=__version__,
        description="Azure AI Model Inference, OpenAI chat and OpenAI Responses APIs for Phi-3-vision",
        docs_url=None,
        redoc_url=None,
        static_url=docs.FILES,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.response_store = _response_store(service.settings, replica)
    app.state.metrics = metrics.Metrics(service.stats)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    errors.install(app)
    for routes in (info, chat, responses, tokenize, health, metrics_route, docs):
        app.include_router(routes.router)
    if service.settings.playground:
        app.include_router(playground.router)
    app.add_middleware(NoteRoute)
    app.add_middleware(CatchBugs)
    app.add_middleware(PlainPaths)
    app.add_middleware(HeadAsGet)
    trace = None if traces is None else traces.record
    count = app.state.metrics.count_request
    for outer in outer_middleware(service.settings, count, trace, faces_browsers):
        app.add_middleware(outer.cls, *outer.args, **outer.kwargs)
    return app


def _response_store(settings: Settings, replica: str) -> ResponseStore:
    memory = int(settings.response_store_memory * 2**30) if settings.response_store else 0
    return ResponseStore(memory, settings.response_store_seconds, replica)


def outer_middleware(
    settings: Settings,
    count: CountRequest,
    trace: TraceRequest | None = None,
    faces_browsers: bool = True,
) -> list[Middleware]:
    """The middleware around every response, errors included, from the innermost to the outermost."""
    stack = []
    if faces_browsers:
        stack.append(Middleware(CrossSiteGuard, settings=settings))
    stack += [Middleware(RequestIds), Middleware(RateLimits), Middleware(ReadBeforeRefusing)]
    if faces_browsers and settings.allowed_origins:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.allowed_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=READABLE_BY_SCRIPTS,
                allow_private_network=True,  # lets web pages call a server on localhost
            )
        )
    stack.append(Middleware(AccessLog, count=count, trace=trace))
    return stack


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's OpenAPI document, plus the schemas of bodies that routes read or write themselves."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        _, unseen = models_json_schema(
            [
                (ChatCompletionRequest, "validation"),
                (TokenizeRequest, "validation"),
                (ResponsesRequest, "validation"),
                (DetokenizeRequest, "validation"),
                (ChatCompletionChunk, "serialization"),
                (ResponseStreamEvent, "serialization"),
            ],
            ref_template="#/components/schemas/{model}",
        )
        document["components"]["schemas"] |= unseen["$defs"]
        app.openapi_schema = document
    return app.openapi_schema
