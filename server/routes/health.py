"""Whether the server can answer, for load balancers and containers. Needs no key."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.dependencies import ServiceOf
from server.schemas.answers import Health

router = APIRouter(tags=["health"])


@router.get(
    "/health",
    response_model=Health,
    responses={503: {"model": Health, "description": "loading, draining or dead"}},
)
async def health(service: ServiceOf) -> JSONResponse:
    """200 when ready; 503 with the state otherwise."""
    state = Health(status=service.state)
    return JSONResponse(state.model_dump(), 200 if state.status == "ready" else 503)
