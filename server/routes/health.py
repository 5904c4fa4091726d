"""Whether the server can answer, for load balancers and containers. Needs no key."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.dependencies import ServiceOf

router = APIRouter(tags=["health"])


@router.get("/health", responses={503: {"description": "loading, draining or dead"}})
async def health(service: ServiceOf) -> JSONResponse:
    """200 when ready; 503 with the state otherwise."""
    return JSONResponse({"status": service.state}, 200 if service.state == "ready" else 503)
