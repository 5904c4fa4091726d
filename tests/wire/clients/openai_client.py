"""OpenAI's SDK, blocking and asyncio, and the client that it has for Azure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
from cells import (
    KEY,
    MODEL,
    PICTURE,
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

MESSAGES: Any = [{"role": "user", "content": QUESTION}]
SHOWN: Any = [{"role": "user", "content": PICTURE}]
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
GIVEN: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, **SETTINGS}


def openai_v1(key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{URL}/v1", api_key=key)


def azure_openai(key: str = KEY) -> openai.AzureOpenAI:
    return openai.AzureOpenAI(azure_endpoint=URL, api_key=key, api_version="2024-05-01-preview")


def cells(make: Callable[..., openai.OpenAI]) -> dict[str, Callable[[], Any]]:
    def complete(key: str = KEY, **changes: Any) -> Any:
        with make(key) as client:
            return client.chat.completions.create(**{**GIVEN, **changes})

    def stream() -> dict[str, Any]:
        with make() as client:
            return told_stream(list(client.chat.completions.create(**GIVEN, **STREAM)))

    return {
        "answer": lambda: told(complete()),
        "stream": stream,
        "image": lambda: told(complete(messages=SHOWN)),
        "error": lambda: complete(**REFUSED),
        "auth": lambda: complete(WRONG_KEY),
        "tools": lambda: complete(tools=[{"type": "function", "function": WEATHER}]),
    }


def asyncio_cells(cls: Any, **where: Any) -> dict[str, Callable[[], Any]]:
    async def complete(key: str = KEY, **changes: Any) -> dict[str, Any]:
        async with cls(api_key=key, **where) as client:
            return told(await client.chat.completions.create(**{**GIVEN, **changes}))

    async def stream() -> dict[str, Any]:
        async with cls(api_key=KEY, **where) as client:
            chunks = await client.chat.completions.create(**GIVEN, **STREAM)
            return told_stream([chunk async for chunk in chunks])

    return {
        "answer": lambda: asyncio.run(complete()),
        "stream": lambda: asyncio.run(stream()),
        "image": lambda: asyncio.run(complete(messages=SHOWN)),
        "error": lambda: asyncio.run(complete(**REFUSED)),
        "auth": lambda: asyncio.run(complete(WRONG_KEY)),
    }


report(
    {
        "OpenAI": cells(openai_v1),
        "AzureOpenAI": cells(azure_openai),
        "AsyncOpenAI": asyncio_cells(openai.AsyncOpenAI, base_url=f"{URL}/v1"),
        "AsyncAzureOpenAI": asyncio_cells(
            openai.AsyncAzureOpenAI, azure_endpoint=URL, api_version="2024-05-01-preview"
        ),
    }
)
