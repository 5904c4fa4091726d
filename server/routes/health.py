"""Health checks for load balancers and containers. They need no key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.errors import retry_after
from server.http.dependencies import ServiceOf
from server.schemas.responses import Health

router = APIRouter(tags=["health"])


def _route(unavailable: str) -> dict[str, Any]:
    return {"response_model": Health, "responses": {503: {"model": Health, **_503(unavailable)}}}


def _503(description: str) -> dict[str, Any]:
    wait = {"schema": {"type": "string"}, "description": "seconds"}
    return {"description": description, "headers": {"Retry-After": wait}}


@router.get("/health", **_route("loading, draining or dead"))
@router.get("/health/ready", **_route("loading, draining or dead"))
async def ready(service: ServiceOf) -> JSONResponse:
    """200 if the server accepts requests; otherwise 503 with the state."""
    return _state_response(service, "ready")


@router.get("/health/live", **_route("dead: restart the process"))
async def live(service: ServiceOf) -> JSONResponse:
    """200 with the state unless the engine is dead, even while loading or draining."""
    return _state_response(service, "loading", "ready", "draining")


def _state_response(service: ServiceOf, *good: str) -> JSONResponse:
    state = Health(status=service.state)
    if state.status in good:
        return JSONResponse(state.model_dump())
    return JSONResponse(state.model_dump(), 503, retry_after())
