"""The matrix of clients: each one gets an answer, a stream, an image's answer, an error and a refusal.

The programs in ``clients`` and ``node`` make the calls, in environments of their own.
"""

from __future__ import annotations

import pytest

from tests.support.client_programs import (
    MAX_TOKENS,
    Row,
    check_pet,
    plain,
    plain_image,
    raised,
    returned,
)
from tests.support.servers.live_server import LiveServer

pytestmark = [
    pytest.mark.slow,  # in all
    pytest.mark.timeout(600),  # the first test of an environment makes it
]

AZURE_ERRORS = ("HttpResponseError", "ClientAuthenticationError")
OPENAI_ERRORS = ("UnprocessableEntityError", "AuthenticationError")
LITELLM_ERRORS = ("BadRequestError", "AuthenticationError")
OWN = None  # the project's own environment


LANGCHAIN_OPENAI = (
    *("ChatOpenAI", "ChatOpenAI-responses", "AzureAIOpenAIApiChatModel"),
    *("AzureAIOpenAIApiChatModel-chat", "AzureAIOpenAIApiChatModel-project"),
)
LANGCHAIN = [
    *(
        Row("frameworks", "langchain_client.py", client, OPENAI_ERRORS)
        for client in LANGCHAIN_OPENAI
    ),
    Row("frameworks", "langchain_client.py", "AzureAIChatCompletionsModel", AZURE_ERRORS),
]
LITELLM = [
    Row("frameworks", "litellm_client.py", client, LITELLM_ERRORS)
    for client in ("azure_ai/", "openai/", "hosted_vllm/", "azure/")
]
ROWS = [
    *(
        Row(environment, "azure_client.py", client, AZURE_ERRORS)
        for environment in (OWN, "azure-b3")
        for client in ("blocking", "asyncio")
    ),
    Row("node", "azure_client.mjs", "client", ("Unexpected", "Unexpected")),
    *(
        Row(environment, "openai_client.py", client, OPENAI_ERRORS)
        for environment in (OWN, "frameworks")
        for client in ("OpenAI", "AzureOpenAI", "AsyncOpenAI", "AsyncAzureOpenAI")
    ),
    *LANGCHAIN,
    *LITELLM,
    Row("frameworks", "llama_index_client.py", "OpenAILike", OPENAI_ERRORS),
]
NO_TOOLS = ("asyncio", "AsyncOpenAI", "AsyncAzureOpenAI", "OpenAILike")  # their programs send none
each_client = pytest.mark.parametrize("row", ROWS, ids=str)


@each_client
def test_answer(row: Row, server: LiveServer) -> None:
    assert returned(row, "answer", server) == {"pieces": 1, **plain(server)}


@each_client
def test_stream(row: Row, server: LiveServer) -> None:
    streamed = returned(row, "stream", server)
    assert streamed.pop("pieces") > 1
    assert streamed == plain(server)


@each_client
def test_image(row: Row, server: LiveServer) -> None:
    assert returned(row, "image", server) == {"pieces": 1, **plain_image(server)}


@each_client
def test_error(row: Row, server: LiveServer) -> None:
    error = raised(row, "error", server)
    assert error["status"] == 422
    assert row.errors[0] in error["raised"]
    assert "top_p: Input should be less than or equal to 1" in error["message"]


@each_client
def test_auth(row: Row, server: LiveServer) -> None:
    error = raised(row, "auth", server)
    assert error["status"] == 401
    assert row.errors[1] in error["raised"]
    assert "the API key is missing or wrong" in error["message"]


def rows_of(program: str, *clients: str) -> pytest.MarkDecorator:
    chosen = [row for row in ROWS if row.program.startswith(program)]
    chosen = [row for row in chosen if not clients or row.client in clients]
    return pytest.mark.parametrize("row", chosen, ids=str)


@rows_of("azure_client", "blocking", "client")
def test_azure_model_info(row: Row, server: LiveServer) -> None:
    expected = ["phi3v-tiny", "chat-completions", "phi3v-server"]
    assert returned(row, "info", server) == expected


@rows_of("azure_client", "blocking")
def test_azure_extras_and_system_messages(row: Row, server: LiveServer) -> None:
    assert returned(row, "extras", server) == MAX_TOKENS
    system = returned(row, "system", server)
    assert system["prompt_tokens"] > plain(server)["prompt_tokens"]
    assert returned(row, "text", server) == returned(row, "answer", server)


def test_load_client(server: LiveServer) -> None:
    new, old = (row for row in ROWS if (row.program, row.client) == ("azure_client.py", "blocking"))
    assert returned(new, "load_client", server) == "ChatCompletionsClient"
    # 1.0.0b3 knows "chat_completion" only, and its own documentation's "chat-completions" not.
    assert "ValueError" in raised(old, "load_client", server)["raised"]


@rows_of("azure_client.mjs")
def test_javascript_refuses_plain_http_by_itself(row: Row, server: LiveServer) -> None:
    error = raised(row, "insist", server)
    assert error["status"] is None
    assert "allowInsecureConnection" in error["message"]


@pytest.mark.parametrize("row", [row for row in ROWS if row.client not in NO_TOOLS], ids=str)
def test_tools_are_refused_by_name(row: Row, server: LiveServer) -> None:
    """Where nothing forces a call; the remedy is in the words."""
    error = raised(row, "tools", server)
    assert error["status"] == 422
    assert "'auto'" in error["message"]
    assert "set tool_choice to 'required'" in error["message"]


@rows_of("langchain_client")
def test_langchain_batch_and_conversation(row: Row, server: LiveServer) -> None:
    assert returned(row, "batch", server) == [returned(row, "answer", server)] * 3
    assert returned(row, "conversation", server)["completion_tokens"] == MAX_TOKENS


@rows_of("langchain_client", *LANGCHAIN_OPENAI)
def test_langchain_image_blocks(row: Row, server: LiveServer) -> None:
    assert returned(row, "standard_image", server) == returned(row, "image", server)


@rows_of("langchain_client")
def test_langchain_structured_output(row: Row, server: LiveServer) -> None:
    check_pet(returned(row, "structured", server))


@pytest.mark.parametrize("row", [*LANGCHAIN, *LITELLM], ids=str)
def test_forced_calls(row: Row, server: LiveServer) -> None:
    check_pet(returned(row, "forced", server))


@rows_of("litellm_client")
def test_litellm_async_and_several_answers(row: Row, server: LiveServer) -> None:
    assert returned(row, "async", server) == returned(row, "answer", server)
    assert returned(row, "n", server) == 2


@rows_of("litellm_client")
def test_litellm_responses(row: Row, server: LiveServer) -> None:
    assert returned(row, "responses", server) == returned(row, "answer", server)


@rows_of("litellm_client", "azure_ai/")
def test_litellm_recovers_from_azures_refusal_of_extras(row: Row, server: LiveServer) -> None:
    """It reads the names out of Azure's sentence and asks again without them."""
    assert returned(row, "extra", server) == returned(row, "answer", server)


@rows_of("litellm_client", "openai/", "hosted_vllm/", "azure/")
def test_litellm_may_send_unknown_parameters(row: Row, server: LiveServer) -> None:
    assert returned(row, "extra", server) == returned(row, "answer", server)


@rows_of("llama_index_client")
def test_llama_index_complete_and_async(row: Row, server: LiveServer) -> None:
    answer = returned(row, "answer", server)
    assert returned(row, "complete", server) == answer["text"]
    assert returned(row, "async", server) == answer
