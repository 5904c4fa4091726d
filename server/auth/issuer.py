"""Fetches and caches the keys that Entra signs a tenant's tokens with.

Entra issues tokens of two versions, each with its own discovery document. The app registration decides
which one a client gets, so both are accepted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from typing import Any

import httpx2
from jwt import PyJWK
from jwt.exceptions import PyJWTError
from pydantic_core import from_json

from server.auth.limits import Bucket
from server.errors import ApiError, retry_after

logger = logging.getLogger(__name__)

ALGORITHM = "RS256"  # Entra uses no other
VERSIONS = ("/v2.0", "")
FETCHES_PER_MINUTE = 5
FETCH_TIMEOUT = 10.0  # seconds for all requests of a fetch
MAX_AGE = 3600.0  # seconds until keys are fetched again, so that withdrawn keys are dropped
LARGEST_DOCUMENT = 1_000_000  # bytes
MOST_KEYS = 100


class IssuerError(Exception):
    """The issuer is unreachable or sent an invalid response."""


class Issuer:
    """One tenant's issuer.

    Args:
        authority: base URL, such as ``https://login.microsoftonline.com``.
        tenant: the tenant's id.

    Attributes:
        names: valid values of ``iss``; empty until the first fetch.
    """

    def __init__(self, authority: str, tenant: str) -> None:
        self._base = f"{authority.rstrip('/')}/{tenant}"
        self._tenant = tenant
        self._keys: dict[str, PyJWK] = {}
        self.names: frozenset[str] = frozenset()
        self._fetched_at = -math.inf
        self._failure: IssuerError | None = None
        # Limits fetches, because tokens with unknown key ids would otherwise trigger one each.
        self._fetches = Bucket(FETCHES_PER_MINUTE)
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str) -> PyJWK | None:
        """The key with that id; None if the issuer has none.

        A cached key is returned at once, even while new keys are being fetched.

        Raises:
            ApiError: 503, the key is not cached and the issuer is unavailable.
        """
        known = self._keys.get(kid)
        if known is not None:
            if time.monotonic() - self._fetched_at > MAX_AGE:
                self._fetch_unless_too_often()
            return known
        fetching = self._fetch_unless_too_often()
        if fetching is not None:
            await asyncio.shield(fetching)  # other requests may wait for the same fetch
        if kid not in self._keys and self._failure is not None:
            raise ApiError(
                503,
                "issuer_unavailable",
                f"the token cannot be verified: {self._failure}; try again later",
                headers=retry_after(self._fetches.seconds_until(1)),
            )
        return self._keys.get(kid)

    def _fetch_unless_too_often(self) -> asyncio.Task[None] | None:
        """The fetch in progress, or a new one within the rate limit."""
        if self._fetching is None and self._fetches.level >= 1:
            self._fetches.take(1)
            self._fetching = asyncio.create_task(self._fetch())
        return self._fetching

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT):
                self.names, self._keys = await self._ask()
            self._fetched_at, self._failure = time.monotonic(), None
            logger.info("%s has %d signing keys", self._base, len(self._keys))
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, IssuerError) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                reason = f"no response within {FETCH_TIMEOUT:g} seconds"
            self._failure = IssuerError(f"the issuer {self._base} failed ({reason})")
            logger.error("%s; keeping the previous %d keys", self._failure, len(self._keys))
        finally:
            self._fetching = None

    async def _ask(self) -> tuple[frozenset[str], dict[str, PyJWK]]:
        """Fetch names and keys of both versions; raises IssuerError and the HTTP client's errors."""
        names: set[str] = set()
        keys: dict[str, PyJWK] = {}
        # The default context, so that SSL_CERT_FILE can add an authority.
        context = ssl.create_default_context()
        async with httpx2.AsyncClient(verify=context) as client:
            for version in VERSIONS:
                url = f"{self._base}{version}/.well-known/openid-configuration"
                document = await _get(client, url)
                name, jwks_uri = document.get("issuer"), str(document.get("jwks_uri"))
                if not isinstance(name, str) or self._tenant not in name:
                    raise IssuerError(f"{url} names the issuer of another tenant")
                if not jwks_uri.startswith("https://"):
                    raise IssuerError(f"{url} has a jwks_uri that is not https")
                names.add(name)
                keys |= _signing_keys((await _get(client, jwks_uri)).get("keys"))
        if not keys:
            raise IssuerError("it lists no signing keys")
        return frozenset(names), keys


async def _get(client: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    """Fetch a JSON object; raises IssuerError."""
    body = bytearray()
    async with client.stream("GET", url) as response:
        if response.status_code != 200:
            raise IssuerError(f"{url} returned {response.status_code}")
        async for part in response.aiter_bytes():
            body += part
            if len(body) > LARGEST_DOCUMENT:
                raise IssuerError(f"{url} is larger than {LARGEST_DOCUMENT} bytes")
    try:
        document = from_json(bytes(body))
    except ValueError as error:
        raise IssuerError(f"{url} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise IssuerError(f"{url} is not a JSON object")
    return document


def _signing_keys(listed: object) -> dict[str, PyJWK]:
    """The RSA signing keys of a JWKS, by id."""
    keys: dict[str, PyJWK] = {}
    for entry in listed[:MOST_KEYS] if isinstance(listed, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
            continue
        if entry.get("kty") == "RSA" and entry.get("use", "sig") == "sig":
            try:
                keys[entry["kid"]] = PyJWK(entry, ALGORITHM)
            except (PyJWTError, ValueError, TypeError) as error:
                logger.warning("ignoring the issuer's key %r: %s", entry["kid"], error)
    return keys
