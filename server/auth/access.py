"""Authenticates callers by the API key or token in their headers."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers

from server.auth.entra import Entra
from server.auth.issuer import Issuer
from server.auth.keys import Keys, generated_key
from server.auth.limits import Caller, Limiter, Limits
from server.errors import unauthorized
from server.settings import Settings

ANYBODY = "anonymous"  # the only caller if no key is required


class Access:
    """Knows the callers that may use the server.

    Attributes:
        limiter: enforces their rate limits.

    Raises:
        KeysError: keys in the settings or the key file are invalid.
    """

    def __init__(self, settings: Settings) -> None:
        self._limits = Limits(
            settings.requests_per_minute,
            settings.tokens_per_minute,
            settings.concurrent_requests,
        )
        key = None if settings.api_key is None else settings.api_key.get_secret_value()
        if settings.needs_generated_key and settings.generated_key_file is not None:
            key = generated_key(settings.generated_key_file)
        keys = settings.api_keys
        self._keys = Keys(
            key,
            None if keys is None else keys.get_secret_value(),
            settings.api_keys_file,
            self._limits,
        )
        self._entra: Entra | None = None
        if settings.entra_tenant is not None:
            tenant = str(settings.entra_tenant)
            self._entra = Entra(
                Issuer(settings.entra_authority, tenant),
                tenant,
                settings.entra_audience,
                settings.entra_roles,
                settings.entra_scopes,
            )
        self.limiter = Limiter()
        self.required = settings.requires_auth

    async def caller(self, headers: Headers) -> Caller:
        """Identify the caller by ``Authorization: Bearer`` (OpenAI's clients) or ``api-key`` (Azure's).

        Azure's SDKs send a key in both.

        Raises:
            ApiError: 401, 403 or 503.
        """
        if not self.required:
            return Caller(ANYBODY, self._limits)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        token = bearer.strip() if scheme.lower() == "bearer" else ""
        for sent in (token, headers.get("api-key", "")):
            caller = self._keys.find(sent)
            if caller is not None:
                return caller
        if self._entra is not None and token.count(".") == 2:
            return Caller(await self._entra.name(token), self._limits)
        wanted = "API key" if len(self._keys) else "Entra token"
        if len(self._keys) and self._entra is not None:
            wanted = "API key or Entra token"
        raise unauthorized(
            f"the {wanted} is missing or wrong; send it as 'Authorization: Bearer KEY'"
            + (" or 'api-key: KEY'" if len(self._keys) else "")
        )

    async def follow_changes(self, hangup: asyncio.Event) -> None:
        """Reload the key file whenever it changes or ``hangup`` is set."""
        await self._keys.follow(hangup)
