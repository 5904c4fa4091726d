"""LiteLLM with each prefix that reaches a server of one's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import litellm
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
    result,
    told,
)

litellm.suppress_debug_info = True

WAYS: dict[str, dict[str, Any]] = {
    "azure_ai/": {"api_base": URL},
    "openai/": {"api_base": f"{URL}/v1"},
    "hosted_vllm/": {"api_base": f"{URL}/v1"},
    "azure/": {"api_base": URL, "api_version": "2024-05-01-preview"},
}
MESSAGES = [{"role": "user", "content": QUESTION}]


def cells(prefix: str, way: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    given = {"model": prefix + MODEL, "api_key": KEY, "messages": MESSAGES, **way, **SETTINGS}

    def complete(**changes: Any) -> Any:
        return litellm.completion(**{**given, **changes})

    def stream() -> dict[str, Any]:
        chunks = list(complete(stream=True, stream_options={"include_usage": True}))
        pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
        usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
        return result(
            [piece for piece in pieces if piece],
            usages[-1].prompt_tokens,
            usages[-1].completion_tokens,
        )

    return {
        "answer": lambda: told(complete()),
        "stream": stream,
        "image": lambda: told(complete(messages=[{"role": "user", "content": PICTURE}])),
        "error": lambda: complete(**REFUSED),
        "auth": lambda: complete(api_key=WRONG_KEY),
        "async": lambda: told(asyncio.run(litellm.acompletion(**given))),
        "n": lambda: len(complete(n=2).choices),
        "extra": lambda: told(complete(colour="blue")),
        "tools": lambda: complete(tools=[{"type": "function", "function": WEATHER}]),
    }


report({prefix: cells(prefix, way) for prefix, way in WAYS.items()})
