"""Chat completions, in Azure's and in OpenAI's dialect: one handler, two rules for extras."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from server.auth.limits import Admission
from server.chat.bodies import Json
from server.chat.parse import ExtraPolicy, parse
from server.chat.prepare import convert
from server.errors import CLIENT_CLOSED, responses
from server.http.dependencies import (
    KEY_REQUIRED,
    Admitted,
    ImagesOf,
    ServiceOf,
    documented_body,
    extra_policy,
    json_body,
)
from server.http.piecewise_json import PiecewiseJsonResponse
from server.http.sse import ChunkStream
from server.images.urls import Images
from server.schemas.responses import ChatCompletion
from server.service import Service

EXTRA_PARAMETERS: dict[str, Any] = {
    "name": "extra-parameters",
    "in": "header",
    "description": "what to do with parameters that Azure's API does not define",
    "schema": {"enum": ["error", "drop", "pass-through"], "default": "error"},
}
ROUTE: dict[str, Any] = {
    "response_model": ChatCompletion,
    "responses": {
        200: {
            "description": "The answer, or with `stream` its chunks as server-sent events",
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
Body = Annotated[Json, Depends(json_body)]


@router.post("/chat/completions", **AZURE_ROUTE)
@router.post("/models/chat/completions", **AZURE_ROUTE)
async def azure_chat_completions(
    request: Request,
    service: ServiceOf,
    admission: Admitted,
    images: ImagesOf,
    policy: Annotated[ExtraPolicy, Depends(extra_policy)],
    body: Body,
) -> Response:
    """Azure AI Model Inference: extra parameters as the header ``extra-parameters`` says."""
    return await _answer(request, service, admission, images, body, policy)


@router.post("/v1/chat/completions", **ROUTE)
@router.post("/openai/v1/chat/completions", **ROUTE)
async def openai_chat_completions(
    request: Request, service: ServiceOf, admission: Admitted, images: ImagesOf, body: Body
) -> Response:
    """OpenAI: the engine's own parameters are honoured, unknown ones refused by name."""
    return await _answer(request, service, admission, images, body, "pass-through")


@router.post("/openai/deployments/{deployment}/chat/completions", **ROUTE)
async def azure_openai_chat_completions(
    deployment: str,
    request: Request,
    service: ServiceOf,
    admission: Admitted,
    images: ImagesOf,
    body: Body,
) -> Response:
    """Azure OpenAI: as OpenAI's; the deployment may have any name, there is one model here."""
    return await _answer(request, service, admission, images, body, "pass-through")


async def _answer(
    request: Request,
    service: Service,
    admission: Admission,
    images: Images,
    body: Json,
    policy: ExtraPolicy,
) -> Response:
    most = service.settings.max_messages
    chat, params = await body.read(lambda value: parse(value, policy, most))
    salt = service.cache_salt(request.state.caller, chat.cache_salt)
    question = await convert(service, chat, params, images, salt, request.state.caller)
    answering = await _unless_disconnected(
        request, question.begin(admission.reserve), lambda begun: begun.generation.close()
    )
    if answering is None:
        return Response(status_code=CLIENT_CLOSED)
    generation = answering.generation
    # For the access log.
    request.state.generation, request.state.envelope = generation, answering.envelope

    def settle() -> None:
        admission.settle(generation.prompt_tokens + generation.completion_tokens)

    def end() -> None:
        generation.close()
        settle()

    if chat.stream:
        return ChunkStream(answering.stream(), end, answering.include_usage)
    try:
        answer = await _unless_disconnected(request, answering.complete())
        if answer is not None:
            settle()  # the response's headers tell of it
            return PiecewiseJsonResponse(answer.pieces(), generation.close)
    except BaseException:
        end()
        raise
    end()
    return Response(status_code=CLIENT_CLOSED)


async def _unless_disconnected(
    request: Request, work: Coroutine[Any, Any, T], discard: Callable[[T], None] = lambda _: None
) -> T | None:
    """The result, or None when the client has gone away; the work has ended in any case.

    Args:
        request: of the client.
        work: what it waits for.
        discard: gets a result that nobody will.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(disconnected())
    is_taken = False
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            is_taken = True
            return working.result()
    finally:
        watching.cancel()
        if not is_taken:
            working.cancel()
            working.add_done_callback(partial(_discard, discard))
            await asyncio.wait({working})  # what it holds counts until then
    return None


def _discard(discard: Callable[[T], None], work: asyncio.Future[T]) -> None:
    if not work.cancelled() and work.exception() is None:
        discard(work.result())
