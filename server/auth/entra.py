"""Authenticates callers by Entra ID tokens: checks signature, tenant, audience and expiry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jwt
from jwt.exceptions import ExpiredSignatureError, InvalidAudienceError, PyJWTError

from server.auth.issuer import ALGORITHM, Issuer
from server.errors import ApiError, short_name, unauthorized

CLOCK_SKEW = 60  # seconds that the clocks may differ
LONGEST_TOKEN = 16_384  # characters; Entra's have a few thousand


class Entra:
    """Validates the tokens of one tenant.

    Args:
        issuer: the tenant's issuer.
        tenant: the tenant's id.
        audiences: accepted audiences.
        roles: accepted app roles; a token needs one of them or one of the scopes.
        scopes: accepted scopes; without roles and scopes, all of the tenant's tokens for an audience are
            accepted.
    """

    def __init__(
        self,
        issuer: Issuer,
        tenant: str,
        audiences: Sequence[str],
        roles: Iterable[str] = (),
        scopes: Iterable[str] = (),
    ) -> None:
        self._issuer = issuer
        self._tenant = tenant
        self._audiences = audiences
        self._roles = frozenset(roles)
        self._scopes = frozenset(scopes)

    async def name(self, token: str) -> str:
        """Validate a token; returns the caller's name, which contains its object id in the directory.

        Raises:
            ApiError: 401, the token is invalid; 403, it lacks a role or scope; 503, the issuer's
                keys cannot be fetched.
        """
        if len(token) > LONGEST_TOKEN:
            raise _invalid(f"it is longer than {LONGEST_TOKEN} characters")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = await self._issuer.key(kid) if isinstance(kid, str) else None
            if key is None:
                raise _invalid(f"tenant {self._tenant} has no signing key with that id")
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=self._audiences,
                issuer=self._issuer.names,
                leeway=CLOCK_SKEW,
                options={"require": ["exp", "iss", "aud", "tid"]},
            )
        except ExpiredSignatureError as error:
            raise _invalid("it has expired; get a new one") from error
        except InvalidAudienceError as error:
            wanted = " or ".join(self._audiences)
            raise _invalid(f"it is for another audience; request a token for {wanted}") from error
        except PyJWTError as error:
            raise _invalid(str(error)) from error
        if claims["tid"] != self._tenant:
            raise _invalid("it was issued by another tenant")
        name = claims.get("oid") or claims.get("sub")
        if not isinstance(name, str):
            raise _invalid("it identifies no caller: it has neither oid nor sub")
        self._require_permission(claims)
        return f"entra:{name}"

    def _require_permission(self, claims: dict[str, Any]) -> None:
        if not self._roles and not self._scopes:
            return
        roles, scopes = claims.get("roles"), claims.get("scp")
        has_role = isinstance(roles, list) and not self._roles.isdisjoint(map(str, roles))
        has_scope = isinstance(scopes, str) and not self._scopes.isdisjoint(scopes.split())
        if not has_role and not has_scope:
            kinds = (("roles", self._roles), ("scopes", self._scopes))
            wanted = " or ".join(f"{kind} {', '.join(sorted(of))}" for kind, of in kinds if of)
            raise ApiError(
                403,
                "Forbidden",
                f"the token is valid but has none of the {wanted}; ask a tenant administrator to "
                "grant one",
                headers={"WWW-Authenticate": 'Bearer error="insufficient_scope"'},
            )


def _invalid(reason: str) -> ApiError:
    return unauthorized(
        f"the token is invalid: {short_name(reason)}", 'Bearer error="invalid_token"'
    )
