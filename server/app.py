"""The ASGI application: routes, error shapes, middleware. No state at import."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from server import errors
from server.middleware import PlainPaths, ReadBeforeRefusing, RequestIds
from server.routes import chat, health, info, metrics, playground
from server.schemas import ChatCompletionRequest
from server.service import Service


def create_app(service: Service) -> FastAPI:
    """The application that serves ``service``."""
    app = FastAPI(
        title="Phi-3-vision",
        description="Azure AI Model Inference and OpenAI chat APIs for Phi-3-vision",
        redirect_slashes=False,
    )
    app.state.service = service
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    errors.install(app)
    for router in (info.router, chat.router, health.router, metrics.router):
        app.include_router(router)
    if service.settings.playground:
        app.include_router(playground.router)
    app.add_middleware(PlainPaths)
    app.add_middleware(RequestIds)
    app.add_middleware(ReadBeforeRefusing)
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the request body that it does not see because routes read it."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, request = models_json_schema(
            [(ChatCompletionRequest, "validation")], ref_template="#/components/schemas/{model}"
        )
        document["components"]["schemas"].update(request["$defs"])
        app.openapi_schema = document
    return app.openapi_schema
