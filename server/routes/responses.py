"""OpenAI's Responses API: creates responses, and finds those that are stored."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request, Response

from server.auth.limits import Caller
from server.chat.parameters import IGNORED_HEADER, ignored_header
from server.chat.parse import ExtraPolicy
from server.errors import ApiError, not_supported, responses
from server.http.dependencies import (
    KEY_REQUIRED,
    PROJECT,
    Admitted,
    HeldBytesOf,
    ImagesOf,
    JsonBody,
    ServiceOf,
    openai_policy,
    project_name,
    require_caller,
)
from server.http.piecewise_json import PiecewiseJsonResponse
from server.http.respond import respond
from server.http.sse import EventStream
from server.responses.conversations import StoredResponses
from server.responses.pages import DEFAULT_PAGE, LARGEST_PAGE, input_items, page_of
from server.responses.prepare import convert, prepare_response
from server.responses.store import ResponseStore
from server.routes.chat import IGNORED, OPENAI_DEFAULT, body_with_extras
from server.schemas.responses_object import DeletedResponse, InputItemList, ResponseObject

PREFIXES = ("/v1", "/openai/v1", "/openai")
NO_STORE = "this server stores no responses (--no-response-store)"
EVENT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "description": "the type of the event"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/ResponseStreamEvent"},
        },
    },
    "required": ["event", "data"],
}
CREATE: dict[str, Any] = {
    "response_model": ResponseObject,
    "responses": {
        200: {
            "description": "The response, or with `stream` its events as server-sent events",
            "headers": {IGNORED_HEADER: IGNORED},
            "content": {"text/event-stream": {"itemSchema": EVENT}},
        },
        **responses(400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503),
    },
    "openapi_extra": body_with_extras("ResponsesRequest", OPENAI_DEFAULT),
}
CANCEL = responses(400, 401, 403, 404, 503)
STORED: dict[str, Any] = {"responses": responses(401, 403, 404, 422, 503)}
PAGE: dict[str, Any] = {
    "parameters": [
        {
            "name": "limit",
            "in": "query",
            "schema": {
                "type": "integer",
                "minimum": 1,
                "maximum": LARGEST_PAGE,
                "default": DEFAULT_PAGE,
            },
        },
        {
            "name": "order",
            "in": "query",
            "schema": {"enum": ["asc", "desc"], "default": "desc"},
        },
        {
            "name": "after",
            "in": "query",
            "description": "id of the item before the page",
            "schema": {"type": "string"},
        },
    ]
}

router = APIRouter(tags=["responses"], dependencies=KEY_REQUIRED)
CallerOf = Annotated[Caller, Depends(require_caller)]


def store_of(request: Request) -> ResponseStore:
    """The app's stored responses."""
    return cast(ResponseStore, request.app.state.response_store)


StoreOf = Annotated[ResponseStore, Depends(store_of)]


async def create(
    request: Request,
    service: ServiceOf,
    store: StoreOf,
    admission: Admitted,
    images: ImagesOf,
    held: HeldBytesOf,
    policy: Annotated[ExtraPolicy, Depends(openai_policy)],
    body: JsonBody,
) -> Response:
    """Create a response."""
    settings, caller = service.settings, admission.caller.name
    stored = None
    if store.is_on:
        stored = StoredResponses(
            store, caller, held, settings.max_body_bytes, settings.max_messages
        )
    converted = await convert(service, body, policy, stored, NO_STORE)
    chat = converted.chat
    salt = service.cache_salt(caller, chat.request.cache_salt)
    prepared = await prepare_response(service, converted, images, salt, caller)
    stream = EventStream if chat.request.stream else None
    return await respond(request, admission, prepared, stream, ignored_header(chat.ignored))


async def retrieve(
    response_id: str, request: Request, store: StoreOf, caller: CallerOf
) -> Response:
    """A stored response of the same caller."""
    stored = store.get(caller.name, response_id)
    if request.query_params.get("stream", "false") == "true":
        raise not_supported(
            "stream is not supported for stored responses; remove it", ("stream",), True
        )
    return PiecewiseJsonResponse(stored.response, lambda: None)


async def delete(response_id: str, store: StoreOf, caller: CallerOf) -> DeletedResponse:
    """Delete a stored response of the same caller."""
    store.delete(caller.name, response_id)
    return DeletedResponse(id=response_id)


async def list_input_items(
    response_id: str, request: Request, store: StoreOf, caller: CallerOf
) -> InputItemList:
    """The input items of a stored response, without those of responses that it continues."""
    stored = store.get(caller.name, response_id)
    return await input_items(stored, page_of(request.query_params))


async def cancel(response_id: str, store: StoreOf, caller: CallerOf) -> None:
    """Refuse to cancel a response, as those in the background are not supported."""
    store.get(caller.name, response_id)
    raise ApiError(
        400,
        "not_cancellable",
        "only responses with background: true can be cancelled, and this server has none; to end a "
        "response, close its connection",
    )


for prefix in (*PREFIXES, PROJECT):
    path, one = f"{prefix}/responses", f"{prefix}/responses/{{response_id}}"
    named: dict[str, Any] = {"dependencies": [Depends(project_name)]} if prefix == PROJECT else {}
    router.post(path, **CREATE, **named)(create)
    named["include_in_schema"] = prefix == "/v1"  # the others are the same
    router.get(one, response_model=ResponseObject, **STORED, **named)(retrieve)
    router.delete(one, **STORED, **named)(delete)
    router.get(f"{one}/input_items", **STORED, openapi_extra=PAGE, **named)(list_input_items)
    router.post(f"{one}/cancel", status_code=400, responses=CANCEL, **named)(cancel)
