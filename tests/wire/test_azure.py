"""Azure's SDK for Python against a live server, in detail; over TLS with a token credential."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Self

import pytest
from azure.ai.inference import ChatCompletionsClient, load_client
from azure.ai.inference.aio import ChatCompletionsClient as AsyncChatCompletionsClient
from azure.ai.inference.models import (
    AsyncStreamingChatCompletions,
    ChatRequestMessage,
    ImageContentItem,
    ImageUrl,
    SystemMessage,
    TextContentItem,
    UserMessage,
)
from azure.core.credentials import AccessToken, AzureKeyCredential
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
)

from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.wire import chart

LANGUAGES: list[ChatRequestMessage] = [
    SystemMessage("You are a helpful assistant."),
    UserMessage("How many languages are in the world?"),
]


@pytest.fixture
def client(server: LiveServer) -> ChatCompletionsClient:
    return ChatCompletionsClient(server.url, AzureKeyCredential(API_KEY))


def test_model_info(client: ChatCompletionsClient) -> None:
    info = client.get_model_info()
    assert (info.model_name, info.model_type, info.model_provider_name) == (
        "phi3v-tiny",
        "chat-completions",
        "phi3v-server",
    )


def test_load_client(server: LiveServer) -> None:
    loaded = load_client(server.url, AzureKeyCredential(API_KEY))
    assert isinstance(loaded, ChatCompletionsClient)


def test_complete(client: ChatCompletionsClient) -> None:
    response = client.complete(messages=LANGUAGES, max_tokens=8)
    (choice,) = response.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = response.usage
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens
    assert 1 <= usage.completion_tokens <= 8
    assert response.model == "phi3v-tiny"


def test_stream_equals_whole(client: ChatCompletionsClient) -> None:
    parameters: dict[str, Any] = {"messages": LANGUAGES, "temperature": 0, "max_tokens": 48}
    whole = client.complete(**parameters, top_p=1)
    updates = list(client.complete(**parameters, top_p=1, stream=True))
    assert updates[0].choices[0].delta.role == "assistant"
    assert all(isinstance(update.choices[0].delta.content, str) for update in updates)
    text = "".join(update.choices[0].delta.content for update in updates)
    assert text == whole.choices[0].message.content
    assert updates[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert updates[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [update.usage for update in updates[:-1]] == [None] * (len(updates) - 1)
    assert len({update.id for update in updates}) == 1


def test_more_parameters(client: ChatCompletionsClient) -> None:
    response = client.complete(
        messages=LANGUAGES,
        presence_penalty=0.1,
        frequency_penalty=0.8,
        max_tokens=16,
        stop=["<|endoftext|>"],
        temperature=0,
        top_p=1,
        response_format="text",
    )
    assert response.choices[0].message.content


def test_model_extras(client: ChatCompletionsClient) -> None:
    response = client.complete(
        messages=LANGUAGES, max_tokens=4, model_extras={"logprobs": True, "top_logprobs": 2}
    )
    content = response.choices[0]["logprobs"]["content"]
    assert len(content) == response.usage.completion_tokens
    assert all(len(token["top_logprobs"]) == 2 for token in content)


@pytest.mark.parametrize("media", ["jpeg", "jpg"])
def test_image(client: ChatCompletionsClient, media: str) -> None:
    def ask(url: str) -> int:
        response = client.complete(
            messages=[
                SystemMessage("You are a helpful assistant that can respond based on images."),
                UserMessage(
                    [
                        TextContentItem(text="Which conclusion can be extracted from the chart?"),
                        ImageContentItem(image_url=ImageUrl(url=url)),
                    ]
                ),
            ],
            temperature=0,
            top_p=1,
            max_tokens=4,
        )
        return response.usage.prompt_tokens

    assert ask(chart(media)) > 700  # the tiny checkpoint takes four crops


def test_errors(client: ChatCompletionsClient, server: LiveServer) -> None:
    with pytest.raises(HttpResponseError) as caught:
        client.complete(messages=LANGUAGES, temperature=9)
    assert caught.value.status_code == 422
    assert caught.value.error is not None
    assert caught.value.error.code == "invalid_parameter"
    assert "temperature" in str(caught.value.error.message)
    # The Azure sample for unsupported parameters loops over `detail`.
    response: Any = caught.value.response
    detail = response.json()["detail"]
    assert [(d["loc"], d["input"]) for d in detail] == [(["body", "temperature"], 9)]
    stranger = ChatCompletionsClient(server.url, AzureKeyCredential("wrong"))
    with pytest.raises(ClientAuthenticationError):
        stranger.get_model_info()


def test_an_error_before_a_stream_is_an_error(client: ChatCompletionsClient) -> None:
    long: list[ChatRequestMessage] = [UserMessage("word " * 50_000)]
    with pytest.raises(HttpResponseError) as caught:
        client.complete(messages=long, stream=True)
    assert caught.value.error is not None
    assert caught.value.error.code == "context_length_exceeded"


@pytest.mark.parametrize("suffix", ["", "/"])
def test_async_client(server: LiveServer, suffix: str) -> None:
    async def talk() -> tuple[str | None, str]:
        credential = AzureKeyCredential(API_KEY)
        async with AsyncChatCompletionsClient(server.url + suffix, credential) as client:
            whole = await client.complete(messages=LANGUAGES, temperature=0, max_tokens=16)
            stream = await client.complete(
                messages=LANGUAGES, temperature=0, max_tokens=16, stream=True
            )
            assert isinstance(stream, AsyncStreamingChatCompletions)
            text = ""
            async for update in stream:
                text += update.choices[0].delta.content or ""
            await stream.aclose()
            return whole.choices[0].message.content, text

    whole, streamed = asyncio.run(talk())
    assert whole == streamed


def token(*scopes: str) -> AccessToken:
    """The API key, as if it were a token of Entra's."""
    assert scopes == ("https://ml.azure.com/.default",)
    return AccessToken(API_KEY, int(time.time()) + 3600)


class StaticToken:
    """A credential of Entra's kind."""

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return token(*scopes)


class AsyncStaticToken:
    """The same for asyncio."""

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return token(*scopes)

    async def close(self) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...


def test_token_credential_over_tls(secure_server: tuple[LiveServer, Path]) -> None:
    live, authority = secure_server
    trusting: dict[str, Any] = {"connection_verify": str(authority)}
    client = ChatCompletionsClient(live.url, StaticToken(), **trusting)
    assert client.complete(messages=LANGUAGES, max_tokens=4).usage.completion_tokens == 4
    loaded = load_client(live.url, StaticToken(), **trusting)
    assert loaded.get_model_info().model_name == "Phi-3-vision-128k-Instruct"

    async def stream() -> int:
        credential = AsyncStaticToken()
        async with AsyncChatCompletionsClient(live.url, credential, **trusting) as client:
            updates = await client.complete(messages=LANGUAGES, max_tokens=4, stream=True)
            assert isinstance(updates, AsyncStreamingChatCompletions)
            usage = [update async for update in updates][-1].usage
            await updates.aclose()
            assert usage is not None
            return int(usage.completion_tokens)

    assert asyncio.run(stream()) == 4


def test_token_credential_is_refused_by_the_sdk_over_http(server: LiveServer) -> None:
    """And let through when a call says so, which the README tells."""
    client = ChatCompletionsClient(server.url, StaticToken())
    with pytest.raises(ServiceRequestError, match="not permitted for non-TLS protected"):
        client.get_model_info()
    answer = client.complete(messages=LANGUAGES, max_tokens=4, enforce_https=False)
    assert answer.usage.completion_tokens == 4
