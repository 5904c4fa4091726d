"""LiteLLM with each prefix that reaches a server of one's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import litellm
from cells import (
    KEY,
    MODEL,
    PET,
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

    def forced() -> Any:
        """The arguments of a forced call."""
        tools = [{"type": "function", "function": PET}]
        choice = {"type": "function", "function": {"name": PET["name"]}}
        # LiteLLM refuses tool_choice for azure_ai/ unless it is told to let it pass.
        allowed = ["tool_choice"] if prefix == "azure_ai/" else []
        answer = complete(tools=tools, tool_choice=choice, allowed_openai_params=allowed)
        (call,) = answer.choices[0].message.tool_calls
        return json.loads(call.function.arguments)

    def respond() -> dict[str, Any]:
        """The Responses API, where the prefix has it; for others LiteLLM makes a chat of it."""
        changed = {"input": QUESTION, "max_output_tokens": SETTINGS["max_tokens"]}
        kept = {name: given[name] for name in ("model", "api_key", "temperature", *way)}
        answer = litellm.responses(**kept, **changed)
        text = answer.output[0].content[0].text
        return result([text], answer.usage.input_tokens, answer.usage.output_tokens)

    return {
        "answer": lambda: told(complete()),
        "forced": forced,
        "responses": respond,
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
