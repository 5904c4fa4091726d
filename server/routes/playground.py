"""The playground: a page to talk to the model. Static files, and the limits that it must know."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from server.http.dependencies import ServiceOf

# No script, style or picture but our own, no text turned into markup, no frame around the page: a
# model's answer stays text, whatever it says. Pictures that the user adds are data and blobs.
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
    """The directives as a header has them."""
    return "; ".join(f"{name} {value}" for name, value in directives.items())


HEADERS = {
    "Content-Security-Policy": content_security_policy(OURS_ALONE | NO_MARKUP_FROM_TEXT),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, but asked for again each time (304): a new server's page never runs old scripts.
    "Cache-Control": "no-cache",
}

# Open without the key: there is nothing here that the source does not show. What the page asks of
# the model needs the key as everybody's requests do.
router = APIRouter(include_in_schema=False)
files = StaticFiles(directory=Path(__file__).parents[1] / "playground")


@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    return await file("index.html", request)


@router.get("/playground/settings.json")
async def settings(service: ServiceOf) -> JSONResponse:
    """What the page must know before it has a key."""
    settings = service.settings
    known = {
        "api_key_required": settings.requires_auth,
        "max_body_bytes": settings.max_body_bytes,
        "max_image_pixels": settings.max_image_pixels,
        "max_output_tokens": settings.max_output_tokens,
    }
    return JSONResponse(known, headers=HEADERS)


@router.get("/playground/{path:path}")
async def file(path: str, request: Request) -> Response:
    """A script, style or picture of the page."""
    response = await files.get_response(path, request.scope)
    response.headers.update(HEADERS)
    return response
