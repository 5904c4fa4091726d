"""Pydantic AI with its models for chat completions and for the Responses API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
from pets import Pet
from pydantic_ai import Agent, ImageUrl, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


def told(run: Any, pieces: list[str]) -> dict[str, Any]:
    usage = run.usage
    return result(pieces, usage.input_tokens, usage.output_tokens)


def cells(kind: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    def agent(key: str = KEY, **changes: Any) -> Agent[None, Any]:
        model = kind(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=key))
        return Agent(model, **{"model_settings": SETTINGS, **changes})

    def complete(asked: Any = QUESTION, key: str = KEY, **changes: Any) -> dict[str, Any]:
        run = agent(key).run_sync(asked, model_settings=changes)
        return told(run, [run.output])

    async def stream() -> dict[str, Any]:
        async with agent().run_stream(QUESTION) as run:
            pieces = [piece async for piece in run.stream_text(delta=True, debounce_by=None)]
        return told(run, [piece for piece in pieces if piece])

    def weathered() -> Any:
        asking = agent()
        asking.tool_plain(lambda place: "It rains.", name="weather", description="The weather.")
        return asking.run_sync(QUESTION).output

    return {
        "answer": complete,
        "stream": lambda: asyncio.run(stream()),
        "image": lambda: complete([LOOK, ImageUrl(IMAGE)]),
        "error": lambda: complete(**REFUSED),
        "auth": lambda: complete(key=WRONG_KEY),
        # By default its output is the call of a function.
        "structured": lambda: agent(output_type=Pet).run_sync(QUESTION).output.model_dump(),
        "native": lambda: (
            agent(output_type=NativeOutput(Pet)).run_sync(QUESTION).output.model_dump()
        ),
        "tools": weathered,
    }


report(
    {
        "OpenAIChatModel": cells(OpenAIChatModel),
        "OpenAIResponsesModel": cells(OpenAIResponsesModel),
    }
)
