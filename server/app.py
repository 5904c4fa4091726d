"""The ASGI application: routes, error shapes, middleware. No state at import."""

from __future__ import annotations

from fastapi import FastAPI

from server import errors
from server.middleware import ReadBeforeRefusing, RequestIds
from server.routes import chat, health, info
from server.service import Service


def create_app(service: Service) -> FastAPI:
    """The application that serves ``service``."""
    app = FastAPI(
        title="Phi-3-vision",
        description="Azure AI Model Inference and OpenAI chat APIs for Phi-3-vision",
        redirect_slashes=False,
    )
    app.state.service = service
    errors.install(app)
    for router in (info.router, chat.router, health.router):
        app.include_router(router)
    app.add_middleware(RequestIds)
    app.add_middleware(ReadBeforeRefusing)
    return app
