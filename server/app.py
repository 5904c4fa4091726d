"""The ASGI application: routes, error shapes, request ids. No state at import."""

from __future__ import annotations

import uuid

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import errors
from server.routes import chat, health, info
from server.service import Service

REQUEST_IDS = ("x-ms-client-request-id", "x-request-id")
LONGEST_ID = 128  # characters; a longer one is not echoed


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
    return app


class RequestIds:
    """Echoes the caller's request ids, and names the request where there is none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, adding the ids to the start of its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope)
        ids = {
            name: sent[name] for name in REQUEST_IDS if 0 < len(sent.get(name, "")) <= LONGEST_ID
        }
        ids.setdefault("x-request-id", uuid.uuid4().hex)

        async def send_with_ids(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(ids)
            await send(message)

        await self._app(scope, receive, send_with_ids)
