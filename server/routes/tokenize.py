"""Counts tokens, compatible with vLLM's ``/tokenize``. Does not run the model."""

from __future__ import annotations

from fastapi import APIRouter

from server.chat.parse import parse_tokenize, to_messages
from server.errors import responses
from server.http.dependencies import (
    KEY_REQUIRED,
    Admitted,
    ImagesOf,
    JsonBody,
    ServiceOf,
    documented_body,
)
from server.schemas.responses import Tokenized

router = APIRouter(tags=["chat"], dependencies=KEY_REQUIRED)


@router.post(
    "/tokenize",
    responses=responses(400, 401, 403, 408, 413, 415, 422, 429, 500, 503),
    openapi_extra=documented_body("TokenizeRequest"),
)
async def tokenize(
    service: ServiceOf,
    admission: Admitted,
    images: ImagesOf,
    body: JsonBody,
) -> Tokenized:
    """Token ids of ``messages``, images included, or of a plain ``prompt``."""
    engine, settings = service.engine, service.settings
    most, caller = settings.max_messages, admission.caller.name
    wanted = await body.validate(lambda value: parse_tokenize(value, most))
    if wanted.messages is not None:
        messages = await to_messages(wanted.messages, images, settings.max_images)
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
