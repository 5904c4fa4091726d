"""Keeps pages of other sites from using a server without authentication.

Browsers let any page send requests, also to localhost. ``Origin`` names the site of the page, and
``Host`` the name under which it reached the server. A foreign host means DNS rebinding: a site whose
name temporarily resolves to this machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError, error_response, short_name
from server.settings import DEFAULT_PORTS, Settings, is_loopback, parse_host

SAFE = ("GET", "HEAD", "OPTIONS")


class CrossSiteGuard:
    """Refuses requests from pages of other sites if no key is required.

    Args:
        app: the wrapped application.
        settings: the allowed hosts and origins; with authentication, all are allowed.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle or refuse a request."""
        if scope["type"] == "http" and not self._settings.requires_auth:
            headers = Headers(scope=scope)
            refusal = self._host_refusal(headers)
            if refusal is None and scope["method"] not in SAFE:
                refusal = self._origin_refusal(headers)
            if refusal is not None:
                await error_response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _host_refusal(self, headers: Headers) -> ApiError | None:
        """The error if the Host header is not allowed; browsers always send one."""
        host = headers.get("host")
        if not self._settings.checks_hosts or host is None:
            return None
        if _is_this_machine(host) or _is_among(host, self._settings.allowed_hosts):
            return None
        return ApiError(
            403,
            "host_not_allowed",
            f"the Host is {short_name(host)!r}, but without a key the server accepts only localhost "
            "and loopback addresses; add the host to --allowed-hosts",
        )

    def _origin_refusal(self, headers: Headers) -> ApiError | None:
        """The error if the request comes from a page of another site."""
        origin, allowed = headers.get("origin"), self._settings.allowed_origins
        if "*" in allowed or origin in allowed:
            return None
        elsewhere = headers.get("sec-fetch-site") == "cross-site"
        if origin is not None:
            elsewhere = elsewhere or not _is_own(origin, headers.get("host", ""))
        if not elsewhere:
            return None
        return ApiError(
            403,
            "origin_not_allowed",
            f"the request comes from a page of {short_name(origin or 'another site')!r}, but without "
            "a key the server accepts only its own pages; add the origin to --allowed-origins",
        )


def _is_this_machine(text: str) -> bool:
    host = parse_host(text)
    return host is not None and (is_loopback(host.name) or host.name.endswith(".localhost"))


def _is_among(text: str, allowed: Sequence[str]) -> bool:
    """Whether a host is allowed; an allowed host without a port allows all ports."""
    host = parse_host(text)
    if host is None or "*" in allowed:
        return "*" in allowed
    return not {host, host._replace(port=None)}.isdisjoint(map(parse_host, allowed))


def _is_own(origin: str, host: str) -> bool:
    """Whether an origin is this server."""
    scheme, _, rest = origin.partition("://")
    its, own = parse_host(rest), parse_host(host)
    if its is None or own is None:
        return False
    default = DEFAULT_PORTS.get(scheme.lower())
    return (its.name, its.port or default) == (own.name, own.port or default)
