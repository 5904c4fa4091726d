"""Prepares responses of routes and of batches: converts the request and starts the chat completion."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from pydantic_core import to_json

from server.chat.bodies import ParsedJson
from server.chat.parse import ExtraPolicy, ParsedChat
from server.chat.prepare import PreparedChat, prepare, unset_defaults
from server.images.urls import Images
from server.responses.conversations import Conversation, StoredResponses, refuse_stored
from server.responses.field_names import FieldNames
from server.responses.ids import response_id
from server.responses.items import normalized
from server.responses.parse import echoed, parse_request, to_chat
from server.responses.running import Keep, RunningResponse
from server.schemas.responses_object import ResponseObject
from server.service import Backend


@dataclass(frozen=True)
class ConvertedRequest:
    """A request as a chat completion.

    Attributes:
        chat: the chat completion.
        names: what its fields are called in the request.
        response: the response before it has any output.
        input_items: JSON of the input items.
        keep: stores the finished response, unless it is not to be stored.
    """

    chat: ParsedChat
    names: FieldNames
    response: ResponseObject
    input_items: bytes
    keep: Keep | None


@dataclass(frozen=True)
class PreparedResponse:
    """A request that is ready for the engine; ``start`` can be retried if the engine is overloaded."""

    _chat: PreparedChat
    _converted: ConvertedRequest

    async def start(self, admit: Callable[[int, int], None] | None = None) -> RunningResponse:
        """Start the response; see ``AsyncEngine.generate`` for ``admit`` and errors."""
        converted = self._converted
        with converted.names.in_errors():
            running = await self._chat.start(admit)
        return RunningResponse(
            running, converted.response, converted.names, converted.input_items, converted.keep
        )


async def convert(
    backend: Backend,
    body: ParsedJson,
    extra_policy: ExtraPolicy,
    stored: StoredResponses | None,
    why_none: str,
) -> ConvertedRequest:
    """Validate a request and convert it to a chat completion.

    Args:
        backend: knows the model's name and the limits.
        body: the request's body.
        extra_policy: how to handle parameters that OpenAI does not define.
        stored: the caller's stored responses; None if none are stored.
        why_none: the reason, for errors.

    Raises:
        ApiError: the request is invalid or not supported.
    """
    most = backend.settings.max_messages
    request, others = await body.validate(lambda value: parse_request(value, extra_policy, most))
    conversation = Conversation()
    if stored is None:
        refuse_stored(request, why_none)
    else:
        conversation = await stored.conversation(request, body.size)
    keeps = request.store and stored is not None
    own = response_id(uuid.uuid4().hex, stored.store.place if stored is not None else "")
    info = backend.info

    def converted(_: object) -> ConvertedRequest:
        items = normalized(request.input, own, conversation.referenced)
        chat, names = to_chat(request, others, conversation.earlier, items, extra_policy, most)
        params = replace(chat.params, **unset_defaults(chat.request, info.default_parameters))
        response = echoed(request, params, own, info.name, keeps)
        input_items = to_json(items) if keeps else b""
        keep = stored.keep if stored is not None and keeps else None
        return ConvertedRequest(chat, names, response, input_items, keep)

    done = await ParsedJson(request, body.size + conversation.size).validate(converted)
    if stored is not None:
        stored.hold(len(done.input_items))
    return done


async def prepare_response(
    backend: Backend, converted: ConvertedRequest, images: Images, salt: str, caller: str = ""
) -> PreparedResponse:
    """Prepare the chat completion; see ``server.chat.prepare.prepare``."""
    with converted.names.in_errors():
        chat = await prepare(backend, converted.chat, images, salt, caller)
    return PreparedResponse(chat, converted)
