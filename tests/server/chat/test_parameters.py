"""Parameters: what is honoured, what may be left out, what is refused, in both dialects."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import (
    AUTHORIZED,
    HELLO,
    chat,
    check_error,
    data_url,
    image_message,
    png,
)


def test_the_azure_sentence(server: LiveServer) -> None:
    """LiteLLM looks for these words and retries without the names in brackets."""
    body = {"messages": HELLO, "foo": 1, "bar": 2}
    response = httpx2.post(f"{server.url}/chat/completions", json=body, headers=AUTHORIZED)
    assert response.json()["message"] == (
        "Extra parameters ['foo', 'bar'] are not allowed when extra-parameters is not set or set to "
        "be 'error'. Set extra-parameters to 'pass-through' to pass to the model."
    )


def test_nulls_are_absent_at_any_depth(server: LiveServer) -> None:
    message = image_message(data_url(png(40, 30)))
    message[0]["content"][0]["image_url"]["detail"] = None
    message[0]["content"].append({"type": "text", "text": "x", "cache_control": None})
    response = httpx2.post(
        f"{server.url}/chat/completions",
        json={
            "messages": message,
            "max_tokens": 1,
            "top_p": None,
            "stream_options": {"include_usage": None},
        },
        headers=AUTHORIZED,
    )
    assert response.status_code == 200, response.text


def test_numbers_may_be_strings(server: LiveServer) -> None:
    numbers = {"max_tokens": "2", "temperature": "5e-1", "frequency_penalty": "-0.8", "seed": "7"}
    response = chat(server, **numbers, logit_bias={"5": "-1"})
    assert response.json()["usage"]["completion_tokens"] <= 2
    for string in ("", "hot", " 1", "1_0", "0x1", "inf", "nan", "true"):
        check_error(chat(server, temperature=string), 422, "invalid_parameter", ["temperature"])


@pytest.mark.parametrize("value", ["true", "yes", 1, 0, "", []])
def test_flags_are_booleans(server: LiveServer, value: Any) -> None:
    check_error(chat(server, stream=value), 422, "invalid_parameter", ["stream"])


@pytest.mark.parametrize(
    "parameters",
    [
        {"stop": "zzzz"},
        {"stop": ["zzzz"]},
        {"stop": []},
        {"response_format": "text"},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "text", "json_schema": None}},
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"modalities": ["text"]},
        {"stream_options": {"include_usage": True, "include_obfuscation": True}},
        {"logprobs": False, "top_logprobs": None},
        {"model": "any name", "user": "me", "store": True, "metadata": {"a": "b"}},
        {"service_tier": "auto", "parallel_tool_calls": True, "safety_identifier": "me"},
        {"prompt_cache_key": "mine", "max_tokens": None, "max_completion_tokens": 2},
    ],
)
@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions"])
def test_taken_by_both_dialects(server: LiveServer, path: str, parameters: dict[str, Any]) -> None:
    """With no header either: LiteLLM sends OpenAI's names to Azure's route."""
    response = chat(server, path, **parameters)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "parameters",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"functions": [{"name": "f"}]},
        {"function_call": "auto"},
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "alloy", "format": "wav"}},
        {"prediction": {"type": "content", "content": "x"}},
        {"reasoning_effort": "high"},
        {"verbosity": "low"},
        {"web_search_options": {}},
        {"top_logprobs": 2},
    ],
)
@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions"])
def test_refused_by_name_in_both_dialects(
    server: LiveServer, path: str, parameters: dict[str, Any]
) -> None:
    (name,) = parameters
    body = check_error(chat(server, path, **parameters), 422, "parameter_not_supported", [name])
    assert name in body["message"]


@pytest.mark.parametrize(
    "leftovers",
    [
        {"refusal": None, "annotations": [], "audio": None, "tool_calls": None},
        {"tool_calls": [], "function_call": None, "provider_specific_fields": {}},
        {"name": "me"},
    ],
)
def test_messages_may_carry_what_answers_carry(
    server: LiveServer, leftovers: dict[str, Any]
) -> None:
    answer = {"role": "assistant", "content": "Hello!", **leftovers}
    assert chat(server, messages=[*HELLO, answer, *HELLO]).status_code == 200


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_an_assistant_may_have_said_nothing(server: LiveServer, content: dict[str, Any]) -> None:
    """Azure's SDK for Python leaves out the content of an ``AssistantMessage()``."""
    silent = {"role": "assistant", **content}
    response = chat(server, messages=[*HELLO, silent, *HELLO])
    assert response.status_code == 200, response.text
    empty = chat(server, messages=[*HELLO, {"role": "assistant", "content": ""}, *HELLO])
    assert response.json()["usage"]["prompt_tokens"] == empty.json()["usage"]["prompt_tokens"]
    called = silent | {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}
    assert chat(server, messages=[*HELLO, called, *HELLO]).status_code == 200


@pytest.mark.parametrize(
    "kind", ["input_audio", "audio_url", "input_video", "video", "video_url", "file"]
)
def test_other_media_are_refused_by_name(server: LiveServer, kind: str) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind, kind: {}}]}
    where = ["messages", 0, "content", 1]
    body = check_error(chat(server, messages=[message]), 422, "modality_not_supported", where)
    assert repr(kind) in body["message"]


def test_the_rest_of_the_window_is_the_most(server: LiveServer) -> None:
    """The seed's 2048 works with any window; so does more than it has."""
    response = chat(server, max_tokens=1_000_000, stop=["e", "a", "t", " "])
    assert response.status_code == 200


@pytest.mark.parametrize("repetition_penalty", [1e-38, 0, -1, 11])
def test_repetition_penalty_is_bounded(server: LiveServer, repetition_penalty: float) -> None:
    body = {"messages": HELLO, "max_tokens": 3, "repetition_penalty": repetition_penalty}
    response = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers=AUTHORIZED)
    check_error(response, 422, "invalid_parameter", ["repetition_penalty"])


@pytest.mark.parametrize("header", ["extra-parameters", "extra-params"])
def test_extra_parameters(server: LiveServer, header: str) -> None:
    def post(policy: str, **extras: Any) -> httpx2.Response:
        return httpx2.post(
            f"{server.url}/chat/completions",
            json={"messages": HELLO, "max_tokens": 3, **extras},
            headers={**AUTHORIZED, header: policy},
        )

    assert post("drop", colour=1, top_k="nonsense").status_code == 200
    assert post("pass-through", top_k=1, ignore_eos=True).status_code == 200
    assert post("error", colour=None).status_code == 200
    check_error(post("pass-through", colour=1), 422, "extra_forbidden", ["colour"])
    check_error(post("error", colour=1), 400, "extra_forbidden", ["colour"])
    check_error(post("sometimes"), 400, "invalid_parameter", [])


def test_every_field_at_fault_is_named(server: LiveServer) -> None:
    body = {"messages": [{"role": "king"}], "temperature": 5, "top_p": "x"}
    response = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers=AUTHORIZED)
    named = [tuple(detail["loc"]) for detail in response.json()["detail"]]
    assert named == [
        ("body", "messages", 0, "role"),
        ("body", "messages", 0, "content"),
        ("body", "temperature"),
        ("body", "top_p"),
    ]
