"""The playground, a chat page: its static files and settings."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from server.http.dependencies import ServiceOf

# Allow only the server's own scripts, styles and pictures, no markup from text, and no framing, so that
# the model's output cannot inject anything. Pictures that the user adds are data and blob URLs.
OURS_ALONE = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
NO_MARKUP_FROM_TEXT = {"require-trusted-types-for": "'script'", "trusted-types": "'none'"}


def content_security_policy(directives: dict[str, str]) -> str:
    """Format directives as a header value."""
    return "; ".join(f"{name} {value}" for name, value in directives.items())


HEADERS = {
    "Content-Security-Policy": content_security_policy(OURS_ALONE | NO_MARKUP_FROM_TEXT),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Revalidate each time (304), so that a new server's page never runs old scripts.
    "Cache-Control": "no-cache",
}

# No authentication: the files are public, and the page's own requests to the model need the key like
# all others.
router = APIRouter(include_in_schema=False)
files = StaticFiles(directory=Path(__file__).parents[1] / "playground")


@router.get("/")
async def page(request: Request) -> Response:
    """Serve the page."""
    return await file("index.html", request)


@router.get("/playground/settings.json")
async def settings(service: ServiceOf) -> JSONResponse:
    """Settings that the page needs before it has a key."""
    settings = service.settings
    known = {
        "api_key_required": settings.requires_auth,
        "max_body_bytes": settings.max_body_bytes,
        "images_per_prompt": settings.images_per_prompt,
        "max_image_pixels": settings.max_image_pixels,
        "max_output_tokens": settings.max_output_tokens,
    }
    return JSONResponse(known, headers=HEADERS)


@router.get("/playground/{path:path}")
async def file(path: str, request: Request) -> Response:
    """Serve a script, style or picture of the page."""
    response = await files.get_response(path, request.scope)
    response.headers.update(HEADERS)
    return response
