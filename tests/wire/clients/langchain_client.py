"""LangChain's chat models: OpenAI's and the two of Azure AI, with chat completions and responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cells import (
    IMAGE,
    KEY,
    LOOK,
    MODEL,
    PET,
    PICTURE,
    QUESTION,
    REFUSED,
    SETTINGS,
    URL,
    WEATHER,
    WRONG_KEY,
    Token,
    report,
    result,
)
from langchain_azure_ai.chat_models import AzureAIOpenAIApiChatModel
from langchain_azure_ai.chat_models.inference import AzureAIChatCompletionsModel
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

SCHEMA = {"title": "pet", "description": PET["description"], **PET["parameters"]}


def openai(key: str = KEY, **settings: Any) -> BaseChatModel:
    return ChatOpenAI(base_url=f"{URL}/v1", api_key=key, model=MODEL, stream_usage=True, **settings)


def azure_inference(key: str = KEY, **settings: Any) -> BaseChatModel:
    """It takes a temperature of 0 for none at all and leaves it out, so the coldest one is asked for."""
    if settings.get("temperature") == 0:
        settings["temperature"] = 1e-6
    return AzureAIChatCompletionsModel(endpoint=URL, credential=key, **settings)


def openai_responses(key: str = KEY, **settings: Any) -> BaseChatModel:
    return openai(key, use_responses_api=True, **settings)


def azure_openai_api(key: str = KEY, **settings: Any) -> BaseChatModel:
    """As Azure's pages have it: with an API version, and the Responses API, which is the default then."""
    return AzureAIOpenAIApiChatModel(
        endpoint=f"{URL}/openai/v1",
        credential=key,
        model=MODEL,
        api_version="2025-05-12",
        **settings,
    )


def azure_openai_chat(key: str = KEY, **settings: Any) -> BaseChatModel:
    return AzureAIOpenAIApiChatModel(
        endpoint=f"{URL}/v1", credential=key, model=MODEL, use_responses_api=False, **settings
    )


def azure_project(key: str = KEY, **settings: Any) -> BaseChatModel:
    endpoint = f"{URL}/api/projects/any"
    return AzureAIOpenAIApiChatModel(
        project_endpoint=endpoint, credential=Token(key), model=MODEL, **settings
    )


def told(message: BaseMessage, pieces: list[str]) -> dict[str, Any]:
    usage = message.usage_metadata or {} if isinstance(message, AIMessage) else {}
    return result(pieces, usage.get("input_tokens"), usage.get("output_tokens"))


def cells(make: Callable[..., BaseChatModel]) -> dict[str, Callable[[], Any]]:
    def whole(message: BaseMessage) -> dict[str, Any]:
        return told(message, [str(message.text)])

    def stream() -> dict[str, Any]:
        chunks = list(make(**SETTINGS).stream(QUESTION))
        total = chunks[0]
        for chunk in chunks[1:]:
            total = total + chunk
        return told(total, [str(chunk.text) for chunk in chunks if chunk.text])

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
        model = make(max_tokens=200).with_structured_output(SCHEMA, method="json_schema")
        return model.invoke(QUESTION)

    def forced() -> Any:
        model = make(max_tokens=200).with_structured_output(SCHEMA, method="function_calling")
        return model.invoke(QUESTION)

    return {
        "structured": structured,
        "forced": forced,
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
        "ChatOpenAI-responses": cells(openai_responses),
        "AzureAIChatCompletionsModel": cells(azure_inference),
        "AzureAIOpenAIApiChatModel": cells(azure_openai_api),
        "AzureAIOpenAIApiChatModel-chat": cells(azure_openai_chat),
        "AzureAIOpenAIApiChatModel-project": cells(azure_project),
    }
)
