"""Chat completions. Azure's and OpenAI's routes differ only in how they handle extra parameters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from server.auth.limits import Admission
from server.chat.bodies import ParsedJson
from server.chat.parse import ExtraPolicy, parse_chat
from server.chat.prepare import prepare
from server.errors import CLIENT_CLOSED, responses
from server.http.dependencies import (
    KEY_REQUIRED,
    Admitted,
    ImagesOf,
    JsonBody,
    ServiceOf,
    documented_body,
    extra_policy,
)
from server.http.exchange import exchange_of
from server.http.piecewise_json import PiecewiseJsonResponse
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
T = TypeVar("T")


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

    if chat.stream:
        return ChunkStream(running.stream(), end)
    try:
        completion = await _unless_disconnected(request, running.complete())
        if completion is not None:
            settle()  # before the response's headers report the rate limits
            return PiecewiseJsonResponse(completion.pieces(), generation.close)
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
