"""Metrics for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from server.errors import responses
from server.http.dependencies import ServiceOf, require_caller
from server.telemetry.metrics import CONTENT_TYPE, Metrics

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={
        200: {"description": "metrics in the Prometheus text format"},
        **responses(401, 403, 503),
    },
)
async def get_metrics(request: Request, service: ServiceOf) -> Response:
    """Metrics for Prometheus; require authentication unless ``open_metrics`` is set."""
    if not service.settings.open_metrics:
        await require_caller(request, service)
    numbers: Metrics = request.app.state.metrics
    return Response(numbers.render(), media_type=CONTENT_TYPE)
