"""LlamaIndex with its class for servers that speak OpenAI's API."""

from __future__ import annotations

import asyncio
from typing import Any

from cells import (
    IMAGE,
    KEY,
    LOOK,
    MODEL,
    QUESTION,
    REFUSED,
    SETTINGS,
    URL,
    WRONG_KEY,
    report,
    result,
)
from llama_index.core.llms import ChatMessage, ChatResponse, ImageBlock, TextBlock
from llama_index.llms.openai_like import OpenAILike


def llm(key: str = KEY, **settings: Any) -> OpenAILike:
    return OpenAILike(
        api_base=f"{URL}/v1", api_key=key, model=MODEL, is_chat_model=True, **settings
    )


def told(response: ChatResponse, pieces: list[str]) -> dict[str, Any]:
    usage = response.raw.usage
    return result(pieces, usage.prompt_tokens, usage.completion_tokens)


def whole(response: ChatResponse) -> dict[str, Any]:
    return told(response, [response.message.content])


def stream() -> dict[str, Any]:
    responses = list(llm(**SETTINGS).stream_chat([ChatMessage(QUESTION)]))
    return told(responses[-1], [response.delta for response in responses if response.delta])


def image() -> dict[str, Any]:
    message = ChatMessage(blocks=[TextBlock(text=LOOK), ImageBlock(url=IMAGE)])
    return whole(llm(**SETTINGS).chat([message]))


report(
    {
        "OpenAILike": {
            "answer": lambda: whole(llm(**SETTINGS).chat([ChatMessage(QUESTION)])),
            "stream": stream,
            "image": image,
            "error": lambda: llm(additional_kwargs=REFUSED).chat([ChatMessage(QUESTION)]),
            "auth": lambda: llm(WRONG_KEY, **SETTINGS).chat([ChatMessage(QUESTION)]),
            "complete": lambda: llm(**SETTINGS).complete(QUESTION).text,
            "async": lambda: whole(asyncio.run(llm(**SETTINGS).achat([ChatMessage(QUESTION)]))),
        }
    }
)
