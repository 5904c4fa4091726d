"""What OpenAI's routes ignore, and say so, and what they refuse by name."""

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
from tests.support.waiting import eventually

OPENAI = "/v1/chat/completions"
HEADER = "x-ignored-parameters"


def ignored(response: httpx2.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [name for name in response.headers.get(HEADER, "").split(", ") if name]


def say(role: str = "user", **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": "hello", **fields}


PICTURE = image_message(data_url(png(40, 30)))[0]["content"][0]
# name: (body, what is named)
IGNORED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({"temperature": 0, "top_k": 1, "parallel_tool_calls": False}, []),
    "unknown": ({"colour": 1, "shape": {"a": []}}, ["colour", "shape"]),
    "null": ({"colour": None, "user": None}, []),
    "without effect": (
        {"user": "me", "metadata": {"a": "b"}, "store": True},
        ["user", "store", "metadata"],
    ),
    "of other templates": (
        {"chat_template_kwargs": {"enable_thinking": False}},
        ["chat_template_kwargs"],
    ),
    "no template": ({"chat_template_kwargs": {}}, []),
    "options": (
        {"stream_options": {"include_obfuscation": True, "colour": 1}},
        ["stream_options.include_obfuscation", "stream_options.colour"],
    ),
    "harmless values": (
        {"best_of": 1, "echo": False, "mirostat": 0, "verbosity": "medium", "top_logprobs": 0},
        ["best_of", "echo", "mirostat"],
    ),
    "messages": (
        {
            "messages": [
                say(id="1", cache_control={"type": "ephemeral"}),
                say("assistant", reasoning_content="because", annotations=[], refusal=None),
                say(id="2"),
            ]
        },
        ["messages.id", "messages.cache_control", "messages.reasoning_content"],
    ),
    "parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {**PICTURE, "image_url": {**PICTURE["image_url"], "min_pixels": 9}},
                        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
                    ],
                }
            ]
        },
        ["messages.content.image_url.min_pixels", "messages.content.cache_control"],
    ),
    "formats": (
        {"response_format": {"type": "text", "colour": 1}},
        ["response_format.colour"],
    ),
    "no names": (
        {"a b,\n\x00é": 1, "x" * 500: 1},
        ["a%20b%2C%0A%00%C3%A9", "x" * 100],
    ),
    "many": ({f"p{i}": 1 for i in range(500)}, [*(f"p{i}" for i in range(10)), "..."]),
}


@pytest.mark.parametrize("name", IGNORED)
@pytest.mark.parametrize("stream", [False, True])
def test_ignored_and_named(server: LiveServer, name: str, stream: bool) -> None:
    body, named = IGNORED[name]
    assert ignored(chat(server, OPENAI, stream=stream, **body)) == named


def test_other_paths_of_openais(server: LiveServer) -> None:
    for path in ("/openai/v1/chat/completions", "/openai/deployments/any/chat/completions"):
        assert ignored(chat(server, path, colour=1)) == ["colour"]


def test_each_name_is_logged_once(server: LiveServer) -> None:
    for _ in range(3):
        chat(server, OPENAI, a_rare_name=1)
    eventually(lambda: [line for line in server.log if "names=a_rare_name" in line])
    chat(server, OPENAI, another_rare_name=1)
    eventually(lambda: [line for line in server.log if "names=another_rare_name" in line])
    assert len([line for line in server.log if "names=a_rare_name" in line]) == 1


def test_the_header_makes_openais_routes_strict(server: LiveServer) -> None:
    def post(policy: str, **body: Any) -> httpx2.Response:
        return chat(server, OPENAI, {"extra-parameters": policy}, **body)

    check_error(post("error", colour=1), 400, "extra_forbidden", ["colour"])
    check_error(post("error", top_k=1), 400, "extra_forbidden", ["top_k"])
    check_error(post("pass-through", colour=1), 422, "extra_forbidden", ["colour"])
    assert ignored(post("pass-through", top_k=1)) == []
    assert ignored(post("drop", colour=1, top_k="nonsense")) == ["colour", "top_k"]
    nested = {"stream_options": {"colour": 1}}
    check_error(
        post("pass-through", **nested), 422, "extra_forbidden", ["stream_options", "colour"]
    )
    where = ["messages", 0, "id"]
    strict = post("pass-through", messages=[say(id="1")])
    check_error(strict, 422, "parameter_not_supported", where)
    check_error(post("sometimes"), 400, "invalid_parameter", [])


def test_azures_routes_stay_strict(server: LiveServer) -> None:
    check_error(chat(server, colour=1), 400, "extra_forbidden", ["colour"])
    where = ["messages", 0, "id"]
    check_error(chat(server, messages=[say(id="1")]), 422, "parameter_not_supported", where)
    assert ignored(chat(server, user="me")) == ["user"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"add_generation_prompt": False},
        {"allowed_token_ids": [1]},
        {"best_of": 2},
        {"chat_template": "{{ messages }}"},
        {"continue_final_message": True},
        {"echo": True},
        {"include_stop_str_in_output": True},
        {"max_new_tokens": 5},
        {"prompt_logprobs": 1},
        {"use_beam_search": True},
        {"ebnf": 'root ::= "a"'},
        {"json_schema": {"type": "integer"}},
        {"stop_sequences": ["x"]},
        {"mirostat": 2},
        {"reasoning_effort": "high"},
    ],
)
def test_what_would_change_the_answer_is_refused(
    server: LiveServer, parameters: dict[str, Any]
) -> None:
    (name,) = parameters
    refused = chat(server, OPENAI, **parameters)
    assert name in check_error(refused, 422, "parameter_not_supported", [name])["message"]


@pytest.mark.parametrize("field", [{"prefix": True}, {"audio": {"id": "1"}}])
def test_so_it_is_in_messages(server: LiveServer, field: dict[str, Any]) -> None:
    (name,) = field
    refused = chat(server, OPENAI, messages=[*HELLO, say("assistant", **field)])
    check_error(refused, 422, "parameter_not_supported", ["messages", 1, name])


def test_a_refusal_is_text(server: LiveServer) -> None:
    def tokens(part: dict[str, str]) -> int:
        said = {"role": "assistant", "content": [part]}
        answer = chat(server, OPENAI, messages=[*HELLO, said, *HELLO])
        assert ignored(answer) == []
        return int(answer.json()["usage"]["prompt_tokens"])

    refusal = {"type": "refusal", "refusal": "I will not."}
    assert tokens(refusal) == tokens({"type": "text", "text": "I will not."})


def test_tokenize_takes_the_body_of_a_chat(server: LiveServer) -> None:
    body: dict[str, Any] = {"messages": [say(id="1")], "temperature": 0, "max_tokens": 3}
    counted = httpx2.post(f"{server.url}/tokenize", json=body, headers=AUTHORIZED)
    assert ignored(counted) == ["temperature", "max_tokens", "messages.id"]
    assert (
        counted.json()["count"]
        == chat(server, **{**body, "messages": HELLO}).json()["usage"]["prompt_tokens"]
    )
