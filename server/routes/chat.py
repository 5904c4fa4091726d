"""Chat completions. Azure's and OpenAI's routes differ only in how they handle extra parameters."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from server.auth.limits import Admission
from server.chat.bodies import ParsedJson
from server.chat.parameters import IGNORED_HEADER, ignored_header
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
    azure_policy,
    documented_body,
    openai_policy,
    project_name,
)
from server.http.respond import respond
from server.http.sse import ChunkStream
from server.images.urls import Images
from server.schemas.responses import ChatCompletion
from server.service import Service

IGNORED: dict[str, Any] = {
    "schema": {"type": "string"},
    "description": "names of parameters that were sent but have no effect, comma-separated",
}
ROUTE: dict[str, Any] = {
    "response_model": ChatCompletion,
    "responses": {
        200: {
            "description": "The completion, or with `stream` its chunks as server-sent events",
            "headers": {IGNORED_HEADER: IGNORED},
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "itemSchema": {"$ref": "#/components/schemas/ChatCompletionChunk"},
                }
            },
        },
        **responses(400, 401, 403, 408, 413, 415, 422, 429, 500, 503),
    },
}


def body_with_extras(schema: str, default: str) -> dict[str, Any]:
    """Document a body and the header for extra parameters; see ``documented_body``."""
    extra_parameters = {
        "name": "extra-parameters",
        "in": "header",
        "description": "how to handle parameters that the API does not define; without the header, "
        f"{default}",
        "schema": {"enum": ["error", "drop", "pass-through"]},
    }
    return {**documented_body(schema), "parameters": [extra_parameters]}


OPENAI_DEFAULT = "the engine's own are honoured and unknown ones ignored"
SCHEMA = "ChatCompletionRequest"
AZURE_ROUTE = {**ROUTE, "openapi_extra": body_with_extras(SCHEMA, "they are an error")}
OPENAI_ROUTE = {**ROUTE, "openapi_extra": body_with_extras(SCHEMA, OPENAI_DEFAULT)}
AzurePolicy = Annotated[ExtraPolicy, Depends(azure_policy)]
OpenAIPolicy = Annotated[ExtraPolicy, Depends(openai_policy)]

router = APIRouter(tags=["chat"], dependencies=KEY_REQUIRED)


@router.post("/chat/completions", **AZURE_ROUTE)
@router.post("/models/chat/completions", **AZURE_ROUTE)
async def azure_chat_completions(
    request: Request,
    service: ServiceOf,
    admission: Admitted,
    images: ImagesOf,
    policy: AzurePolicy,
    body: JsonBody,
) -> Response:
    """Azure AI Model Inference: the header ``extra-parameters`` decides how to handle extra parameters."""
    return await _complete_chat(request, service, admission, images, body, policy)


@router.post("/v1/chat/completions", **OPENAI_ROUTE)
@router.post("/openai/v1/chat/completions", **OPENAI_ROUTE)
@router.post(f"{PROJECT}/chat/completions", **OPENAI_ROUTE, dependencies=[Depends(project_name)])
async def openai_chat_completions(
    request: Request,
    service: ServiceOf,
    admission: Admitted,
    images: ImagesOf,
    policy: OpenAIPolicy,
    body: JsonBody,
) -> Response:
    """OpenAI: unknown parameters are ignored, unless the header ``extra-parameters`` says otherwise."""
    return await _complete_chat(request, service, admission, images, body, policy)


@router.post("/openai/deployments/{deployment}/chat/completions", **OPENAI_ROUTE)
async def azure_openai_chat_completions(
    deployment: str,
    request: Request,
    service: ServiceOf,
    admission: Admitted,
    images: ImagesOf,
    policy: OpenAIPolicy,
    body: JsonBody,
) -> Response:
    """Azure OpenAI: like OpenAI; any deployment name is accepted, because the server has one model."""
    return await _complete_chat(request, service, admission, images, body, policy)


async def _complete_chat(
    request: Request,
    service: Service,
    admission: Admission,
    images: Images,
    body: ParsedJson,
    policy: ExtraPolicy,
) -> Response:
    most = service.settings.max_messages
    parsed = await body.validate(lambda value: parse_chat(value, policy, most))
    caller = admission.caller.name
    salt = service.cache_salt(caller, parsed.request.cache_salt)
    prepared = await prepare(service, parsed, images, salt, caller)
    stream = ChunkStream if parsed.request.stream else None
    return await respond(request, admission, prepared, stream, ignored_header(parsed.ignored))
