"""Clients of agents and of structured output: answers, streams, images, errors, objects, forced calls."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.client_programs import Row, check_pet, plain, plain_image, raised, returned
from tests.support.servers.live_server import LiveServer

pytestmark = [
    pytest.mark.slow,  # in all
    pytest.mark.timeout(600),  # the first test of an environment makes it
]

OPENAI = ("UnprocessableEntityError", "AuthenticationError")
WRAPPED = ("ChatClientException", "ChatClientException")
RETRIED = ("InstructorRetryException", "InstructorRetryException")
PYDANTIC = ("ModelHTTPError", "ModelHTTPError")
COMMAND = ("RuntimeError", "RuntimeError")

RESPONSES = Row("agents", "agent_framework_client.py", "OpenAIChatClient", WRAPPED)
FOR_AZURE = Row("agents", "agent_framework_client.py", "OpenAIChatClient-azure", WRAPPED)
COMPLETIONS = Row("agents", "agent_framework_client.py", "OpenAIChatCompletionClient", WRAPPED)
AGENT_FRAMEWORK = [RESPONSES, FOR_AZURE, COMPLETIONS]
OPENAI_AGENTS = [
    Row("agents", "openai_agents_client.py", client, OPENAI)
    for client in ("OpenAIResponsesModel", "OpenAIChatCompletionsModel")
]
PYDANTIC_AI = [
    Row("agents", "pydantic_ai_client.py", client, PYDANTIC)
    for client in ("OpenAIChatModel", "OpenAIResponsesModel")
]
LLM = [Row("agents", "llm_client.py", client, COMMAND) for client in ("chat", "responses")]
PROJECTS = [Row("frameworks", "projects_client.py", "get_openai_client", OPENAI)]
INSTRUCTOR = [
    Row("instructor", "instructor_client.py", client, RETRIED)
    for client in ("TOOLS", "JSON_SCHEMA", "RESPONSES_TOOLS")
]
JSON_MODE = Row("instructor", "instructor_client.py", "JSON", RETRIED)
ROWS = [*AGENT_FRAMEWORK, *OPENAI_AGENTS, *PYDANTIC_AI, *LLM, *PROJECTS]


def of(*groups: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [row for group in groups for row in group], ids=str)


def more(row: Row) -> dict[str, Any]:
    """What the program asks for besides its settings."""
    return {"stop": [" "]} if row in OPENAI_AGENTS else {}


@of(ROWS)
def test_answer(row: Row, server: LiveServer) -> None:
    assert returned(row, "answer", server) == {"pieces": 1, **plain(server, **more(row))}


@of(AGENT_FRAMEWORK, OPENAI_AGENTS, PYDANTIC_AI, PROJECTS)
def test_stream(row: Row, server: LiveServer) -> None:
    streamed = returned(row, "stream", server)
    assert streamed.pop("pieces") > 1
    assert streamed == plain(server, **more(row))


@of(LLM)
def test_stream_on_the_command_line(row: Row, server: LiveServer) -> None:
    """What is printed; of the Responses API it reads no usage of an answer that was cut short."""
    streamed, expected = returned(row, "stream", server), plain(server)
    assert streamed["text"] == expected["text"]
    counted = row.client == "chat"
    assert streamed["completion_tokens"] == (expected["completion_tokens"] if counted else None)


@of(ROWS)
def test_image(row: Row, server: LiveServer) -> None:
    found, expected = returned(row, "image", server), plain_image(server, **more(row))
    if row == COMPLETIONS:  # it sends the image as a message of its own
        assert found["prompt_tokens"] == pytest.approx(expected["prompt_tokens"], abs=8)
    else:
        assert found == {"pieces": 1, **expected}


@of(ROWS, INSTRUCTOR, [JSON_MODE])
def test_error(row: Row, server: LiveServer) -> None:
    error = raised(row, "error", server)
    if row in (RESPONSES, FOR_AZURE):  # OpenAI's own type refuses it before it is sent
        assert "top_p must be between" in error["message"]
        return
    assert row.errors[0] in error["raised"]
    assert "422" in error["message"]
    name, limit = ("max_", "greater than or equal to 1") if row in LLM else ("top_p", "equal to 1")
    assert name in error["message"]
    assert limit in error["message"]


@of(ROWS, INSTRUCTOR, [JSON_MODE])
def test_auth(row: Row, server: LiveServer) -> None:
    error = raised(row, "auth", server)
    assert row.errors[1] in error["raised"]
    assert "401" in error["message"]
    assert "the API key is missing or wrong" in error["message"]


@of(AGENT_FRAMEWORK, OPENAI_AGENTS, PYDANTIC_AI, LLM, INSTRUCTOR)
def test_structured_output(row: Row, server: LiveServer) -> None:
    """As the client asks for it by default: by JSON schema or by a forced call."""
    check_pet(returned(row, "structured", server))


@of(PYDANTIC_AI)
def test_native_output(row: Row, server: LiveServer) -> None:
    check_pet(returned(row, "native", server))


@of(INSTRUCTOR)
def test_instructor_images_and_partial_objects(row: Row, server: LiveServer) -> None:
    check_pet(returned(row, "image", server))
    partial = returned(row, "partial", server)
    assert len(partial) > 1
    check_pet(partial[-1])


def test_instructors_json_mode(server: LiveServer) -> None:
    """It puts the schema into the prompt, so the server guarantees an object and no more."""
    assert returned(JSON_MODE, "structured", server) == {}


@of(OPENAI_AGENTS, PYDANTIC_AI, LLM)
def test_tools_are_refused_by_name(row: Row, server: LiveServer) -> None:
    """Where nothing forces a call; the remedy is in the words."""
    message = raised(row, "tools", server)["message"]
    assert "'auto'" in message
    assert "set tool_choice to 'required'" in message


@of(OPENAI_AGENTS)
def test_a_forced_call_runs_the_function(row: Row, server: LiveServer) -> None:
    assert returned(row, "forced", server) in ("It rains in Rome.", "It rains in Paris.")


@of(AGENT_FRAMEWORK)
def test_an_agent_continues_its_session(row: Row, server: LiveServer) -> None:
    first, second = returned(row, "conversation", server)
    assert first
    assert second
    assert first != second


@of(PROJECTS)
def test_a_project_has_chat_and_stored_responses(row: Row, server: LiveServer) -> None:
    assert returned(row, "chat", server) == returned(row, "answer", server)
    assert returned(row, "continued", server) is True
