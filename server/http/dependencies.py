"""What routes depend on: the service, the key, and a body that is JSON and not too large."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, cast

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from server.auth.limits import Admission, Caller
from server.chat.bodies import ParsedJson, parse_json
from server.chat.parse import ExtraPolicy
from server.errors import ApiError, short_name, too_large, unsupported_media_type
from server.http.exchange import exchange_of
from server.images.urls import Images
from server.service import Service


def service_of(request: Request) -> Service:
    """The service of the app."""
    return cast(Service, request.app.state.service)


ServiceOf = Annotated[Service, Depends(service_of)]


async def require_caller(request: Request, service: ServiceOf) -> Caller:
    """Refuse unknown callers, before anything of the body is read."""
    caller = await service.access.caller(request.headers)
    exchange_of(request.scope).caller = caller.name
    return caller


async def admit(
    request: Request, service: ServiceOf, caller: Annotated[Caller, Depends(require_caller)]
) -> AsyncIterator[Admission]:
    """Count the request among its caller's until its response is sent; refuse one too many."""
    admission = service.access.limiter.admit(caller)
    exchange_of(request.scope).admission = admission  # for the headers of any response
    try:
        yield admission
    finally:
        admission.close()


Admitted = Annotated[Admission, Depends(admit)]

# The schemes are for the documentation alone; ``require_caller`` reads the headers itself.
KEY_REQUIRED = [
    Depends(require_caller),
    Depends(
        HTTPBearer(
            auto_error=False,
            description="The API key as OpenAI's clients send it, or an Entra ID token.",
        )
    ),
    Depends(
        APIKeyHeader(
            name="api-key", auto_error=False, description="The API key as Azure's clients send it."
        )
    ),
]


def documented_body(schema: str) -> dict[str, Any]:
    """The documentation of a body that ``json_body`` reads: the key is checked before it is.

    Args:
        schema: name among the document's schemas, where ``server.app`` puts it.
    """
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": True, "content": content}}


async def held_bytes(service: ServiceOf) -> AsyncIterator[HeldBytes]:
    """The bytes that are held for a request, until the response has been sent."""
    held = HeldBytes(service)
    try:
        yield held
    finally:
        service.release(held.size)


class HeldBytes:
    """How many bytes the service holds for a request."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.size = 0

    def __call__(self, size: int) -> None:
        """Hold more; raises a 429 ApiError."""
        self._service.hold(size)
        self.size += size


HeldBytesOf = Annotated[HeldBytes, Depends(held_bytes)]


def images_of(service: ServiceOf, held: HeldBytesOf) -> Images:
    """Takes the images of the request; files that it fetches count as its body does."""
    return Images(service.decode_pool, service.fetcher, held)


ImagesOf = Annotated[Images, Depends(images_of)]


async def json_body(request: Request, service: ServiceOf, held: HeldBytesOf) -> ParsedJson:
    """The body as a JSON value; raises a 400, 413, 415, 422 or 429 ApiError."""
    content_type = request.headers.get("content-type", "")
    if not content_type and service.settings.requires_auth:
        content_type = "application/json"
    if not content_type:  # a page of another site may send that without being asked
        raise unsupported_media_type(
            "the request has no Content-Type; send Content-Type: application/json",
        )
    media_type = content_type.split(";")[0].strip()
    if media_type.lower() != "application/json" and not media_type.lower().endswith("+json"):
        raise unsupported_media_type(
            f"the body's Content-Type is {short_name(media_type)}; send application/json",
        )
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise unsupported_media_type(
            f"the body's Content-Encoding is {short_name(encoding)}; send it uncompressed",
        )
    return await parse_json(await read_body(request, service.settings.max_body_bytes, held))


JsonBody = Annotated[ParsedJson, Depends(json_body)]


async def read_body(request: Request, limit: int, held: HeldBytes) -> bytearray:
    """The body, read no further than the limit; raises a 413 or 429 ApiError when it is larger."""
    refusal = too_large(
        f"the body is larger than the limit of {limit} bytes (--max-body-mb); send a smaller image",
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise refusal
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > limit:
            raise refusal
        held(len(part))
    return parts


def extra_policy(request: Request) -> ExtraPolicy:
    """What Azure's ``extra-parameters`` header asks for; ``error`` when it is not there.

    The seed's JavaScript sample misspells the header as ``extra-params``.
    """
    headers = request.headers
    value = headers.get("extra-parameters", headers.get("extra-params", "error")).lower()
    if value not in ("error", "drop", "pass-through"):
        raise ApiError(
            400,
            "invalid_parameter",
            f"the header extra-parameters is {short_name(value)!r}; it must be error, drop or "
            "pass-through",
        )
    return cast(ExtraPolicy, value)
