"""Swagger UI, served from local files under a strict content security policy."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html

from server.routes.playground import HEADERS, OURS_ALONE, content_security_policy

FILES = "/docs-files"
INLINE = re.compile(rb"<script>(.*?)</script>", re.DOTALL)

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def page(request: Request) -> Response:
    """Serve the page."""
    root = request.scope.get("root_path", "")
    html = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=f"{request.app.title} - Swagger UI",
        oauth2_redirect_url=None,  # the server issues no tokens
        swagger_js_url=f"{root}{FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{FILES}/swagger-ui.css",
        swagger_favicon_url=f"{root}{FILES}/favicon.png",
    )
    # Swagger UI creates markup from text, so NO_MARKUP_FROM_TEXT would break it.
    scripts = map(_hash, INLINE.findall(bytes(html.body)))
    policy = OURS_ALONE | {"script-src": " ".join([OURS_ALONE["script-src"], *scripts])}
    html.headers.update({**HEADERS, "Content-Security-Policy": content_security_policy(policy)})
    return html


def _hash(script: bytes) -> str:
    """The CSP source expression that allows an inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
