"""OpenAI's Agents SDK with the Responses API, its default, and with chat completions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import agents
from cells import (
    IMAGE,
    KEY,
    LOOK,
    MODEL,
    QUESTION,
    REFUSED,
    SETTINGS,
    STOP,
    URL,
    WRONG_KEY,
    report,
    result,
)
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from pets import Pet

agents.set_tracing_disabled(True)  # or it sends each run to OpenAI
# For this client an answer of the Responses API that is cut short is an error, so they end by themselves.
GIVEN: dict[str, Any] = {**SETTINGS, "extra_body": {"stop": [STOP]}}
SHOWN: Any = [
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": LOOK},
            {"type": "input_image", "image_url": IMAGE, "detail": "auto"},
        ],
    }
]


def told(run: Any, pieces: list[str]) -> dict[str, Any]:
    usage = run.context_wrapper.usage
    return result(pieces, usage.input_tokens, usage.output_tokens)


@agents.function_tool
def weather(place: Literal["Rome", "Paris"]) -> str:
    """The weather at a place."""
    return f"It rains in {place}."


def cells(kind: Callable[..., agents.Model]) -> dict[str, Callable[[], Any]]:
    def agent(key: str = KEY, **changes: Any) -> agents.Agent[Any]:
        client = AsyncOpenAI(base_url=f"{URL}/v1", api_key=key)
        settings = agents.ModelSettings(**{**GIVEN, **changes.pop("settings", {})})
        model = kind(model=MODEL, openai_client=client)
        return agents.Agent(name="asker", model=model, model_settings=settings, **changes)

    def complete(asked: Any = QUESTION, key: str = KEY, **changes: Any) -> dict[str, Any]:
        run = agents.Runner.run_sync(agent(key, settings=changes), asked)
        return told(run, [run.final_output])

    async def stream() -> dict[str, Any]:
        run = agents.Runner.run_streamed(agent(), QUESTION)
        pieces = [
            event.data.delta
            async for event in run.stream_events()
            if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
        ]
        return told(run, pieces)

    def structured() -> Any:
        return agents.Runner.run_sync(
            agent(settings={"extra_body": {}}, output_type=Pet), QUESTION
        ).final_output.model_dump()

    def forced() -> Any:
        """A forced call, its function run here, and its result for the answer."""
        asked = agent(
            settings={"tool_choice": "required", "extra_body": {}},
            tools=[weather],
            tool_use_behavior="stop_on_first_tool",
        )
        return agents.Runner.run_sync(asked, QUESTION).final_output

    return {
        "answer": complete,
        "stream": lambda: asyncio.run(stream()),
        "image": lambda: complete(SHOWN),
        "error": lambda: complete(**REFUSED),
        "auth": lambda: complete(key=WRONG_KEY),
        "structured": structured,
        "forced": forced,
        "tools": lambda: agents.Runner.run_sync(agent(tools=[weather]), QUESTION),
    }


report(
    {
        "OpenAIResponsesModel": cells(agents.OpenAIResponsesModel),
        "OpenAIChatCompletionsModel": cells(agents.OpenAIChatCompletionsModel),
    }
)
