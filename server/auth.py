"""Who may use the server: those who send its key, in either header that clients use for it."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers

from server.errors import ApiError


def check_api_key(headers: Headers, expected: str) -> None:
    """Raise a 401 ApiError unless a header carries the key.

    ``Authorization: Bearer KEY`` (OpenAI clients) or ``api-key: KEY`` (Azure's); Azure's SDKs send
    both.
    """
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    sent = [headers.get("api-key", "")]
    if scheme.lower() == "bearer":
        sent.append(bearer.strip())
    # Each is compared in constant time, so that answers do not tell how much of a guess is right.
    matches = [hmac.compare_digest(key.encode(), expected.encode()) for key in sent]
    if not any(matches):
        raise ApiError(
            401,
            "Unauthorized",
            "the API key is missing or wrong; send it as 'Authorization: Bearer KEY' or 'api-key: "
            "KEY'",
            headers={"WWW-Authenticate": "Bearer"},
        )
