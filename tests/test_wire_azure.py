"""Azure's SDKs against a live server: the seed's samples, with only the endpoint changed.

Corrected where a sample itself cannot run with the current SDK: ``ImageContentItem`` takes
``image_url``, and ``ChatCompletionsResponseFormat.TEXT`` is now the string ``"text"``.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest
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
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from PIL import Image

from live_server import API_KEY, LiveServer

LANGUAGES = [
    SystemMessage("You are a helpful assistant."),
    UserMessage("How many languages are in the world?"),
]


def chart(media: str = "jpeg") -> str:
    """A data URL of an image of the seed's size."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((1900, 1069)).save(file, "JPEG")
    return f"data:image/{media};base64,{base64.b64encode(file.getvalue()).decode()}"


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
    parameters = {"messages": LANGUAGES, "temperature": 0, "top_p": 1, "max_tokens": 48}
    whole = client.complete(**parameters)
    updates = list(client.complete(**parameters, stream=True))
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
    assert caught.value.error.code == "invalid_parameter"
    assert "temperature" in caught.value.error.message
    # The Azure sample for unsupported parameters loops over `detail`.
    detail = caught.value.response.json()["detail"]
    assert [(d["loc"], d["input"]) for d in detail] == [(["body", "temperature"], 9)]
    stranger = ChatCompletionsClient(server.url, AzureKeyCredential("wrong"))
    with pytest.raises(ClientAuthenticationError):
        stranger.get_model_info()


def test_an_error_before_a_stream_is_an_error(client: ChatCompletionsClient) -> None:
    with pytest.raises(HttpResponseError) as caught:
        client.complete(messages=[UserMessage("word " * 50_000)], stream=True)
    assert caught.value.error.code == "context_length_exceeded"


@pytest.mark.parametrize("suffix", ["", "/"])
def test_async_client(server: LiveServer, suffix: str) -> None:
    import asyncio

    async def talk() -> tuple[str, str]:
        credential = AzureKeyCredential(API_KEY)
        async with AsyncChatCompletionsClient(server.url + suffix, credential) as client:
            whole = await client.complete(messages=LANGUAGES, temperature=0, max_tokens=16)
            stream = await client.complete(
                messages=LANGUAGES, temperature=0, max_tokens=16, stream=True
            )
            text = ""
            async for update in stream:
                text += update.choices[0].delta.content
            await stream.aclose()
            return whole.choices[0].message.content, text

    whole, streamed = asyncio.run(talk())
    assert whole == streamed


@pytest.fixture(scope="module")
def node() -> Path:
    """The Node samples with their packages installed."""
    directory = Path(__file__).parent / "node"
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Node.js and npm are not installed")
    installed = directory / "node_modules" / ".package-lock.json"
    lock = directory / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=directory, check=True)
    return directory


def test_javascript_samples(server: LiveServer, node: Path) -> None:
    done = subprocess.run(
        ["node", node / "azure.mjs", server.url, API_KEY, chart()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["info"] == {
        "model_name": "phi3v-tiny",
        "model_type": "chat-completions",
        "model_provider_name": "phi3v-server",
    }
    assert results["plain"]["usage"]["completion_tokens"] <= 8
    assert len(results["extras"]["choices"][0]["logprobs"]["content"]) == 4
    assert results["image"]["usage"]["prompt_tokens"] > 700
    whole = results["parameters"]
    assert results["stream"]["done"]
    assert results["stream"]["text"] == whole["choices"][0]["message"]["content"]
    assert results["stream"]["usage"] == whole["usage"]
    assert results["error"]["code"] == "invalid_parameter"
    assert results["refused"]["unexpected"]
    assert results["refused"]["status"] == "401"
    assert results["refused"]["body"]["error"]["code"] == "Unauthorized"
