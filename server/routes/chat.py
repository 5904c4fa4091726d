"""Chat completions. Azure's and OpenAI's routes differ only in how they handle extra parameters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from server.auth.limits import Admission
from server.chat.bodies import ParsedJson
from server.chat.parameters import IGNORED_HEADER, ignored_header
from server.chat.parse import ExtraPolicy, parse_chat
from server.chat.prepare import prepare
from server.errors import CLIENT_CLOSED, responses
from server.http.dependencies import (
    KEY_REQUIRED,
    Admitted,
    ImagesOf,
    JsonBody,
    ServiceOf,
    azure_policy,
    documented_body,
    openai_policy,
)
from server.http.exchange import exchange_of
from server.http.piecewise_json import PiecewiseJsonResponse
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


def _route(default: str) -> dict[str, Any]:
    """The documentation of a route; ``default`` is that of the header for extra parameters."""
    extra_parameters = {
        "name": "extra-parameters",
        "in": "header",
        "description": "how to handle parameters that Azure's API does not define; without the header, "
        f"{default}",
        "schema": {"enum": ["error", "drop", "pass-through"]},
    }
    extra = {**documented_body("ChatCompletionRequest"), "parameters": [extra_parameters]}
    return {**ROUTE, "openapi_extra": extra}


AZURE_ROUTE = _route("they are an error")
OPENAI_ROUTE = _route("the engine's own are honoured and unknown ones ignored")
AzurePolicy = Annotated[ExtraPolicy, Depends(azure_policy)]
OpenAIPolicy = Annotated[ExtraPolicy, Depends(openai_policy)]

router = APIRouter(tags=["chat"], dependencies=KEY_REQUIRED)
T = TypeVar("T")


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
    running = await _unless_disconnected(
        request, prepared.start(admission.reserve), lambda started: started.generation.close()
    )
    if running is None:
        return Response(status_code=CLIENT_CLOSED)
    generation = running.generation
    exchange_of(request.scope).completion = running  # for the access log

    def settle() -> None:
        admission.settle(generation.prompt_tokens + generation.completion_tokens)

    def end() -> None:
        generation.close()
        settle()

    headers = ignored_header(parsed.ignored)
    if parsed.request.stream:
        return ChunkStream(running.stream(), end, headers)
    try:
        completion = await _unless_disconnected(request, running.complete())
        if completion is not None:
            settle()  # before the response's headers report the rate limits
            return PiecewiseJsonResponse(completion.pieces(), generation.close, headers)
    except BaseException:
        end()
        raise
    end()
    return Response(status_code=CLIENT_CLOSED)


async def _unless_disconnected(
    request: Request, work: Coroutine[Any, Any, T], discard: Callable[[T], None] = lambda _: None
) -> T | None:
    """Await ``work``, but cancel it and return None if the client disconnects.

    Args:
        request: the client's request.
        work: the coroutine to run.
        discard: called with the result if it arrives too late.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(disconnected())
    is_returned = False
    try:
        await asyncio.wait({task, watching}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            is_returned = True
            return task.result()
    finally:
        watching.cancel()
        if not is_returned:
            task.cancel()
            task.add_done_callback(partial(_discard, discard))
            await asyncio.wait({task})  # what it holds counts as in flight until then
    return None


def _discard(discard: Callable[[T], None], work: asyncio.Future[T]) -> None:
    if not work.cancelled() and work.exception() is None:
        discard(work.result())
