"""LangChain's chat models: OpenAI's, and the two of Azure AI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cells import (
    IMAGE,
    KEY,
    LOOK,
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
)
from langchain_azure_ai.chat_models import AzureAIOpenAIApiChatModel
from langchain_azure_ai.chat_models.inference import AzureAIChatCompletionsModel
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

PET = {
    "title": "pet",
    "description": "A pet.",
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
    },
    "required": ["kind", "age"],
    "additionalProperties": False,
}


def openai(key: str = KEY, **settings: Any) -> BaseChatModel:
    return ChatOpenAI(base_url=f"{URL}/v1", api_key=key, model=MODEL, stream_usage=True, **settings)


def azure_inference(key: str = KEY, **settings: Any) -> BaseChatModel:
    """It takes a temperature of 0 for none at all and leaves it out, so the coldest one is asked for."""
    if settings.get("temperature") == 0:
        settings["temperature"] = 1e-6
    return AzureAIChatCompletionsModel(endpoint=URL, credential=key, **settings)


def azure_openai_api(key: str = KEY, **settings: Any) -> BaseChatModel:
    return AzureAIOpenAIApiChatModel(
        endpoint=f"{URL}/v1", credential=key, model=MODEL, use_responses_api=False, **settings
    )


def told(message: BaseMessage, pieces: list[str]) -> dict[str, Any]:
    usage = message.usage_metadata or {} if isinstance(message, AIMessage) else {}
    return result(pieces, usage.get("input_tokens"), usage.get("output_tokens"))


def cells(make: Callable[..., BaseChatModel]) -> dict[str, Callable[[], Any]]:
    def whole(message: BaseMessage) -> dict[str, Any]:
        return told(message, [str(message.content)])

    def stream() -> dict[str, Any]:
        chunks = list(make(**SETTINGS).stream(QUESTION))
        total = chunks[0]
        for chunk in chunks[1:]:
            total = total + chunk
        return told(total, [str(chunk.content) for chunk in chunks if chunk.content])

    def image() -> dict[str, Any]:
        return whole(make(**SETTINGS).invoke([HumanMessage(PICTURE)]))

    def standard_image() -> dict[str, Any]:
        """An image block as LangChain itself spells it, for any provider."""
        block = {"type": "image", "base64": IMAGE.partition(",")[2], "mime_type": "image/jpeg"}
        message = HumanMessage([{"type": "text", "text": LOOK}, block])
        return whole(make(**SETTINGS).invoke([message]))

    def conversation() -> dict[str, Any]:
        """A system message, an answer taken back, and its sequel."""
        model = make(**SETTINGS)
        messages: list[BaseMessage] = [SystemMessage("Be brief."), HumanMessage(QUESTION)]
        messages += [model.invoke(messages), HumanMessage("And dialects?")]
        return whole(model.invoke(messages))

    def structured() -> Any:
        model = make(max_tokens=200).with_structured_output(PET, method="json_schema")
        return model.invoke(QUESTION)

    return {
        "structured": structured,
        "answer": lambda: whole(make(**SETTINGS).invoke(QUESTION)),
        "stream": stream,
        "image": image,
        "error": lambda: make(**REFUSED).invoke(QUESTION),
        "auth": lambda: make(WRONG_KEY, **SETTINGS).invoke(QUESTION),
        "batch": lambda: [whole(m) for m in make(**SETTINGS).batch([QUESTION] * 3)],
        "standard_image": standard_image,
        "conversation": conversation,
        "tools": lambda: make(**SETTINGS).bind_tools([WEATHER]).invoke(QUESTION),
    }


report(
    {
        "ChatOpenAI": cells(openai),
        "AzureAIChatCompletionsModel": cells(azure_inference),
        "AzureAIOpenAIApiChatModel": cells(azure_openai_api),
    }
)
