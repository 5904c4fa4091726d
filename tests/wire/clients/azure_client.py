"""Azure's SDK for Python, its blocking and its asyncio client; runs with 1.0.0b3 and with 1.0.0b9."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from azure.ai.inference import ChatCompletionsClient, load_client
from azure.ai.inference.aio import ChatCompletionsClient as AsyncChatCompletionsClient
from azure.ai.inference.models import (
    ImageContentItem,
    ImageUrl,
    SystemMessage,
    TextContentItem,
    UserMessage,
)
from azure.core.credentials import AzureKeyCredential
from cells import (
    IMAGE,
    KEY,
    LOOK,
    QUESTION,
    REFUSED,
    SETTINGS,
    URL,
    WEATHER,
    WRONG_KEY,
    report,
    told,
    told_stream,
)

ASKED = [UserMessage(content=QUESTION)]
SHOWN = [
    UserMessage(
        content=[TextContentItem(text=LOOK), ImageContentItem(image_url=ImageUrl(url=IMAGE))]
    )
]
TOOLS = [{"type": "function", "function": WEATHER}]


def blocking(key: str = KEY) -> ChatCompletionsClient:
    return ChatCompletionsClient(endpoint=URL, credential=AzureKeyCredential(key))


def info() -> list[str]:
    told = blocking().get_model_info()
    return [told.model_name, told.model_type, told.model_provider_name]


def extras() -> int:
    answer = blocking().complete(messages=ASKED, model_extras={"logprobs": True}, **SETTINGS)
    return len(answer.choices[0]["logprobs"]["content"])


def system() -> dict[str, Any]:
    messages = [SystemMessage(content="You are a helpful assistant."), *ASKED]
    return told(blocking().complete(messages=messages, **SETTINGS))


def asyncio_cells() -> dict[str, Callable[[], Any]]:
    async def complete(messages: list[Any], key: str = KEY, **settings: Any) -> dict[str, Any]:
        async with AsyncChatCompletionsClient(URL, AzureKeyCredential(key)) as client:
            return told(await client.complete(messages=messages, **SETTINGS, **settings))

    async def stream() -> dict[str, Any]:
        async with AsyncChatCompletionsClient(URL, AzureKeyCredential(KEY)) as client:
            updates = await client.complete(messages=ASKED, stream=True, **SETTINGS)
            told = told_stream([update async for update in updates])
            await updates.aclose()
            return told

    return {
        "answer": lambda: asyncio.run(complete(ASKED)),
        "stream": lambda: asyncio.run(stream()),
        "image": lambda: asyncio.run(complete(SHOWN)),
        "error": lambda: asyncio.run(complete(ASKED, **REFUSED)),
        "auth": lambda: asyncio.run(complete(ASKED, WRONG_KEY)),
    }


report(
    {
        "blocking": {
            "answer": lambda: told(blocking().complete(messages=ASKED, **SETTINGS)),
            "stream": lambda: told_stream(
                list(blocking().complete(messages=ASKED, stream=True, **SETTINGS))
            ),
            "image": lambda: told(blocking().complete(messages=SHOWN, **SETTINGS)),
            "error": lambda: blocking().complete(messages=ASKED, **REFUSED),
            "auth": lambda: blocking(WRONG_KEY).complete(messages=ASKED, **SETTINGS),
            "info": info,
            "load_client": lambda: type(load_client(URL, AzureKeyCredential(KEY))).__name__,
            "extras": extras,
            "system": system,
            "text": lambda: told(
                blocking().complete(messages=ASKED, response_format="text", **SETTINGS)
            ),
            "tools": lambda: blocking().complete({"messages": [*ASKED], "tools": TOOLS}),
        },
        "asyncio": asyncio_cells(),
    }
)
