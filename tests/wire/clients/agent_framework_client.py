"""Microsoft's Agent Framework: its client of the Responses API, OpenAI's and Azure's way, and that of chat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from agent_framework import Agent, ChatResponse, Content, Message
from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient
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

ASKED = [Message("user", [QUESTION])]
PICTURE = Content.from_uri(IMAGE, media_type="image/jpeg")
SHOWN = [Message("user", [Content.from_text(LOOK), PICTURE])]


def told(response: ChatResponse, pieces: list[str]) -> dict[str, Any]:
    usage = response.usage_details or {}
    return result(pieces, usage.get("input_token_count"), usage.get("output_token_count"))


def cells(make: Callable[[str], Any]) -> dict[str, Callable[[], Any]]:
    async def complete(
        messages: list[Message] = ASKED, key: str = KEY, **changes: Any
    ) -> dict[str, Any]:
        response = await make(key).get_response(messages, options={**SETTINGS, **changes})
        return told(response, [response.text])

    async def stream() -> dict[str, Any]:
        updates = make(KEY).get_response(ASKED, stream=True, options=SETTINGS)
        contents = [content async for update in updates for content in update.contents]
        # The Responses API's stream ends with the whole text, which is marked to replace the pieces.
        pieces = [
            each.text for each in contents if each.type == "text" and each.merge_mode != "replace"
        ]
        return told(await updates.get_final_response(), [piece for piece in pieces if piece])

    async def structured() -> Any:
        options = {"response_format": Pet, "max_tokens": 200}
        response = await make(KEY).get_response(ASKED, options=options)
        return response.value.model_dump()

    async def conversation() -> list[str]:
        """An agent with a session of two turns."""
        agent = Agent(
            client=make(KEY), instructions="Be brief.", default_options={"max_tokens": 32}
        )
        session = agent.create_session()
        return [
            (await agent.run(each, session=session)).text for each in (QUESTION, "And dialects?")
        ]

    return {
        "answer": lambda: asyncio.run(complete()),
        "stream": lambda: asyncio.run(stream()),
        "image": lambda: asyncio.run(complete(SHOWN)),
        "error": lambda: asyncio.run(complete(**REFUSED)),
        "auth": lambda: asyncio.run(complete(key=WRONG_KEY)),
        "structured": lambda: asyncio.run(structured()),
        "conversation": lambda: asyncio.run(conversation()),
    }


report(
    {
        "OpenAIChatClient": cells(
            lambda key: OpenAIChatClient(MODEL, api_key=key, base_url=f"{URL}/v1")
        ),
        "OpenAIChatClient-azure": cells(
            lambda key: OpenAIChatClient(MODEL, api_key=key, azure_endpoint=URL)
        ),
        "OpenAIChatCompletionClient": cells(
            lambda key: OpenAIChatCompletionClient(MODEL, api_key=key, base_url=f"{URL}/v1")
        ),
    }
)
