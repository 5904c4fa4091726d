"""Turns prompts into tokens and back, like vLLM's routes of these names. Does not run the model."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from server.chat.messages import to_messages, wanted_crops
from server.chat.parameters import IGNORED_HEADER, ignored_header, ignored_parameters
from server.chat.parse import parse_detokenize, parse_tokenize
from server.chat.tools import describe_functions
from server.errors import responses
from server.http.dependencies import (
    KEY_REQUIRED,
    Admitted,
    ImagesOf,
    JsonBody,
    ServiceOf,
    documented_body,
)
from server.routes.chat import IGNORED
from server.schemas.responses import Detokenized, Tokenized

router = APIRouter(tags=["chat"], dependencies=KEY_REQUIRED)


RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"headers": {IGNORED_HEADER: IGNORED}},
    **responses(400, 401, 403, 408, 413, 415, 422, 429, 500, 503),
}


@router.post("/tokenize", responses=RESPONSES, openapi_extra=documented_body("TokenizeRequest"))
async def tokenize(
    service: ServiceOf,
    admission: Admitted,
    images: ImagesOf,
    body: JsonBody,
    response: Response,
) -> Tokenized:
    """Token ids of ``messages``, images included, or of a plain ``prompt``. Ignores other parameters."""
    engine, settings = service.engine, service.settings
    most, caller = settings.max_messages, admission.caller.name
    wanted, call = await body.validate(lambda value: parse_tokenize(value, most))
    response.headers.update(ignored_header(ignored_parameters(wanted)))
    if wanted.messages is not None:
        crops = wanted_crops(wanted, engine)
        messages = await to_messages(wanted.messages, images, settings.max_images, crops)
        if call is not None:
            messages = describe_functions(messages, call)
        tokens = await engine.tokenize(messages, caller)
    else:
        prompt = wanted.prompt or ""
        tokens = await engine.tokenize_text(prompt, wanted.add_special_tokens, caller)
    return Tokenized(
        count=len(tokens),
        max_model_len=engine.max_model_len,
        tokens=tokens,
        token_strs=[engine.token_text(token) for token in tokens]
        if wanted.return_token_strs
        else None,
    )


@router.post("/detokenize", responses=RESPONSES, openapi_extra=documented_body("DetokenizeRequest"))
async def detokenize(
    service: ServiceOf, admission: Admitted, body: JsonBody, response: Response
) -> Detokenized:
    """The text of token ids."""
    engine = service.engine
    wanted = await body.validate(parse_detokenize)
    response.headers.update(ignored_header(ignored_parameters(wanted)))
    return Detokenized(prompt=await engine.detokenize(wanted.tokens, admission.caller.name))
