"""Dependencies of routes: the service, authentication, and JSON bodies within limits."""

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
    """Authenticate the caller before the body is read."""
    caller = await service.access.caller(request.headers)
    exchange_of(request.scope).caller = caller.name
    return caller


async def admit(
    request: Request, service: ServiceOf, caller: Annotated[Caller, Depends(require_caller)]
) -> AsyncIterator[Admission]:
    """Apply the caller's rate limits to the request."""
    admission = service.access.limiter.admit(caller)
    exchange_of(request.scope).admission = admission  # for the response's rate limit headers
    try:
        yield admission
    finally:
        admission.close()


Admitted = Annotated[Admission, Depends(admit)]

# The security schemes are only for the documentation; ``require_caller`` reads the headers itself.
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
    """Document a body that ``json_body`` reads. FastAPI would read it before the key is checked.

    Args:
        schema: name of a schema that ``server.app`` adds to the document.
    """
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": True, "content": content}}


PROJECT = "/api/projects/{project}/openai/v1"  # prefix of azure-ai-projects


def project_name(project: str) -> str:
    """The project in the paths of azure-ai-projects; any name is accepted."""
    return project


async def held_bytes(service: ServiceOf) -> AsyncIterator[HeldBytes]:
    """Counts the bytes held for a request until its response has been sent."""
    held = HeldBytes(service)
    try:
        yield held
    finally:
        service.release(held.size)


class HeldBytes:
    """Counts the bytes that the service holds for a request."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.size = 0

    def __call__(self, size: int) -> None:
        """Count ``size`` more bytes; raises a 429 ApiError."""
        self._service.hold(size)
        self.size += size


HeldBytesOf = Annotated[HeldBytes, Depends(held_bytes)]


def images_of(service: ServiceOf, held: HeldBytesOf) -> Images:
    """The images of the request; fetched files count towards the limit for bodies."""
    return Images(service.decode_pool, service.fetcher, held, service.settings.images_per_prompt)


ImagesOf = Annotated[Images, Depends(images_of)]


async def json_body(request: Request, service: ServiceOf, held: HeldBytesOf) -> ParsedJson:
    """The body as a JSON value; raises a 400, 413, 415, 422 or 429 ApiError."""
    content_type = request.headers.get("content-type", "")
    if not content_type and service.settings.requires_auth:
        content_type = "application/json"
    if not content_type:  # browsers let other sites send it without a preflight
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
    """Read the body up to the limit; raises a 413 or 429 ApiError."""
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


def azure_policy(request: Request) -> ExtraPolicy:
    """How to handle extra parameters on Azure's routes: ``error`` by default."""
    return _extra_policy(request, "error")


def openai_policy(request: Request) -> ExtraPolicy:
    """The same on OpenAI's routes: ``ignore`` by default."""
    return _extra_policy(request, "ignore")


def _extra_policy(request: Request, default: ExtraPolicy) -> ExtraPolicy:
    """The value of Azure's ``extra-parameters`` header.

    Azure's JavaScript sample misspells the header as ``extra-params``.
    """
    headers = request.headers
    value = headers.get("extra-parameters", headers.get("extra-params"))
    if value is None:
        return default
    value = value.lower()
    if value not in ("error", "drop", "pass-through"):
        raise ApiError(
            400,
            "invalid_parameter",
            f"the header extra-parameters is {short_name(value)!r}; it must be error, drop or "
            "pass-through",
        )
    return cast(ExtraPolicy, value)
