"""Chat completions. Azure's and OpenAI's routes differ only in how they handle extra parameters."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from server.auth.limits import Admission
from server.chat.bodies import ParsedJson
from server.chat.parse import ExtraPolicy, parse_chat
from server.chat.prepare import prepare
from server.errors import responses
from server.http.dependencies import (
    KEY_REQUIRED,
    PROJECT,
    Admitted,
    ImagesOf,
    JsonBody,
    ServiceOf,
    documented_body,
    extra_policy,
    project_name,
)
from server.http.respond import respond
from server.http.sse import ChunkStream
from server.images.urls import Images
from server.schemas.responses import ChatCompletion
from server.service import Service

EXTRA_PARAMETERS: dict[str, Any] = {
    "name": "extra-parameters",
    "in": "header",
    "description": "how to handle parameters that Azure's API does not define",
    "schema": {"enum": ["error", "drop", "pass-through"], "default": "error"},
}
ROUTE: dict[str, Any] = {
    "response_model": ChatCompletion,
    "responses": {
        200: {
            "description": "The completion, or with `stream` its chunks as server-sent events",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "itemSchema": {"$ref": "#/components/schemas/ChatCompletionChunk"},
                }
            },
        },
        **responses(400, 401, 403, 408, 413, 415, 422, 429, 500, 503),
    },
    "openapi_extra": documented_body("ChatCompletionRequest"),
}
AZURE_ROUTE = {
    **ROUTE,
    "openapi_extra": {**ROUTE["openapi_extra"], "parameters": [EXTRA_PARAMETERS]},
}

router = APIRouter(tags=["chat"], dependencies=KEY_REQUIRED)


@router.post("/chat/completions", **AZURE_ROUTE)
@router.post("/models/chat/completions", **AZURE_ROUTE)
async def azure_chat_completions(
    request: Request,
    service: ServiceOf,
    admission: Admitted,
    images: ImagesOf,
    policy: Annotated[ExtraPolicy, Depends(extra_policy)],
    body: JsonBody,
) -> Response:
    """Azure AI Model Inference: the header ``extra-parameters`` decides how to handle extra parameters."""
    return await _complete_chat(request, service, admission, images, body, policy)


@router.post("/v1/chat/completions", **ROUTE)
@router.post("/openai/v1/chat/completions", **ROUTE)
@router.post(f"{PROJECT}/chat/completions", **ROUTE, dependencies=[Depends(project_name)])
async def openai_chat_completions(
    request: Request, service: ServiceOf, admission: Admitted, images: ImagesOf, body: JsonBody
) -> Response:
    """OpenAI: the engine's own parameters are accepted, unknown ones refused."""
    return await _complete_chat(request, service, admission, images, body, "pass-through")


@router.post("/openai/deployments/{deployment}/chat/completions", **ROUTE)
async def azure_openai_chat_completions(
    deployment: str,
    request: Request,
    service: ServiceOf,
    admission: Admitted,
    images: ImagesOf,
    body: JsonBody,
) -> Response:
    """Azure OpenAI: like OpenAI; any deployment name is accepted, because the server has one model."""
    return await _complete_chat(request, service, admission, images, body, "pass-through")


async def _complete_chat(
    request: Request,
    service: Service,
    admission: Admission,
    images: Images,
    body: ParsedJson,
    policy: ExtraPolicy,
) -> Response:
    most = service.settings.max_messages
    chat, params = await body.validate(lambda value: parse_chat(value, policy, most))
    caller = admission.caller.name
    salt = service.cache_salt(caller, chat.cache_salt)
    prepared = await prepare(service, chat, params, images, salt, caller)
    stream = (lambda running, end: ChunkStream(running.stream(), end)) if chat.stream else None
    return await respond(request, admission, prepared, stream)
