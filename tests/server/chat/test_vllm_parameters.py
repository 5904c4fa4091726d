"""Parameters in vLLM's form: usage in all chunks, structured outputs, crops, truncation and the rest."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import jsonschema_rs
import pytest

from server import __version__
from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import (
    AUTHORIZED,
    HELLO,
    chart,
    chat,
    check_error,
    data_url,
    image_message,
    png,
)

OPENAI = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}


def post(server: LiveServer, path: str, **body: Any) -> httpx2.Response:
    return httpx2.post(server.url + path, json=body, headers=AUTHORIZED, timeout=120)


def chunks(server: LiveServer, **body: Any) -> list[Any]:
    text = chat(server, OPENAI, stream=True, **body).text
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_usage_in_all_chunks(server: LiveServer) -> None:
    body = {"max_tokens": 8, "ignore_eos": True, "n": 2}
    both = {"include_usage": True, "continuous_usage_stats": True}
    usages = [chunk["usage"] for chunk in chunks(server, stream_options=both, **body)]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 16)
    assert all(u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"] for u in usages)
    alone = chunks(server, stream_options={"continuous_usage_stats": True}, **body)
    assert [chunk for chunk in alone if "usage" in chunk] == alone[-1:]


@pytest.mark.parametrize(
    ("parameters", "pattern"),
    [
        ({"structured_outputs": {"regex": "[a-c]{3}"}}, r"[a-c]{3}"),
        ({"structured_outputs": {"choice": ["yes", "n.o"]}}, r"yes|n\.o"),
        ({"structured_outputs": {"grammar": 'start: "a" "b"'}}, r"ab"),
        ({"structured_outputs": {"json": SCHEMA}}, None),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, None),
        ({"guided_json": SCHEMA}, None),
        ({"guided_json": json.dumps(SCHEMA)}, None),
    ],
)
def test_structured_outputs(
    server: LiveServer, parameters: dict[str, Any], pattern: str | None
) -> None:
    answer = chat(server, OPENAI, max_tokens=60, **parameters).json()["choices"][0]["message"]
    if pattern is None:
        jsonschema_rs.validate(SCHEMA, json.loads(answer["content"]))
    else:
        assert re.fullmatch(pattern, answer["content"])


@pytest.mark.parametrize(
    ("parameters", "loc"),
    [
        ({"structured_outputs": {}}, ["structured_outputs"]),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, ["structured_outputs"]),
        ({"structured_outputs": {"regex": "("}}, ["structured_outputs", "regex"]),
        ({"structured_outputs": {"json": "nonsense"}}, ["structured_outputs", "json"]),
        ({"structured_outputs": {"json": {"not": {}}}}, ["structured_outputs", "json"]),
        ({"guided_json": "[1"}, ["guided_json"]),
        ({"guided_json": '{"a":' * 30_000}, ["guided_json"]),
        ({"guided_json": '"' + "a" * 200_000 + '"'}, ["guided_json"]),
        ({"guided_json": SCHEMA, "guided_regex": "a"}, ["guided_regex"]),
        ({"num_crops": 5}, ["num_crops"]),
        ({"num_crops": 0}, ["num_crops"]),
        ({"mm_processor_kwargs": {"num_crops": 5}}, ["mm_processor_kwargs", "num_crops"]),
        ({"mm_processor_kwargs": {"num_crops": 2}, "num_crops": 1}, None),
        ({"truncate_prompt_tokens": 0}, ["truncate_prompt_tokens"]),
        ({"truncate_prompt_tokens": -2}, ["truncate_prompt_tokens"]),
        ({"priority": "high"}, ["priority"]),
        ({"priority": 2**70}, ["priority"]),
        ({"chat_template_kwargs": []}, ["chat_template_kwargs"]),
    ],
)
def test_bad_values(server: LiveServer, parameters: dict[str, Any], loc: list[Any] | None) -> None:
    response = chat(server, OPENAI, **parameters)
    where = ["mm_processor_kwargs", "num_crops"] if loc is None else loc
    check_error(response, 422, response.json()["code"], where)


def image_tokens(server: LiveServer, **options: Any) -> int:
    body = {"messages": image_message(data_url(png(600, 200))), **options}
    counted = post(server, "/tokenize", **body).json()
    usage = chat(server, OPENAI, **body).json()["usage"]
    assert counted["count"] == usage["prompt_tokens"]
    return int(counted["tokens"].count(-1))


def test_fewer_crops(server: LiveServer) -> None:
    """The prompt, the caches and ``/tokenize`` follow."""
    whole, two, one = (image_tokens(server, num_crops=crops) for crops in (4, 2, 1))
    assert whole == image_tokens(server) > two > one == 313
    assert image_tokens(server, mm_processor_kwargs={"num_crops": 1}) == 313


def test_crops_are_not_mixed_up_in_caches(server: LiveServer) -> None:
    body: dict[str, Any] = {"messages": image_message(chart()), "temperature": 0, "max_tokens": 8}

    def answer(crops: int, salt: str) -> Any:
        return chat(server, OPENAI, **body, num_crops=crops, cache_salt=salt).json()["choices"]

    assert [answer(crops, "shared") for crops in (1, 2, 1, 4)] == [
        answer(crops, f"own {crops}") for crops in (1, 2, 1, 4)
    ]


LONG = [{"role": "user", "content": "many words " * 3000}]


def test_truncated_prompts(server: LiveServer) -> None:
    def prompt_tokens(**body: Any) -> int:
        return int(chat(server, OPENAI, **body).json()["usage"]["prompt_tokens"])

    assert prompt_tokens(messages=HELLO, truncate_prompt_tokens=500) == prompt_tokens(
        messages=HELLO
    )
    assert prompt_tokens(messages=LONG, truncate_prompt_tokens=50) == 50
    assert prompt_tokens(messages=LONG * 3, truncate_prompt_tokens=-1, max_tokens=92) == 8100
    check_error(
        chat(server, OPENAI, messages=LONG * 3), 400, "context_length_exceeded", ["messages"]
    )


def test_truncation_and_an_image(server: LiveServer) -> None:
    after = [{"role": "user", "content": "so " * 100}]
    message = [*image_message(data_url(png(40, 30))), *after]
    whole = post(server, "/tokenize", messages=message).json()["tokens"]
    at = whole.index(-1)
    end = len(whole) - whole[::-1].index(-1)

    def truncated(keep: int) -> httpx2.Response:
        return chat(server, OPENAI, messages=message, truncate_prompt_tokens=keep)

    for keep in (len(whole) - at, len(whole) - end, 5):
        assert truncated(keep).json()["usage"]["prompt_tokens"] == keep
    refused = truncated(len(whole) - at - 1)
    check_error(refused, 422, "invalid_parameter", ["truncate_prompt_tokens"])


def test_special_tokens_are_left_out_unless_asked_for(server: LiveServer) -> None:
    """With a bias to ``<|end|>``, which ends no answer here."""
    body = {"ignore_eos": True, "logit_bias": {"32007": 100}, "temperature": 0, "max_tokens": 2}

    def content(**more: Any) -> str:
        answer = chat(server, OPENAI, **body, **more).json()["choices"][0]
        return str(answer["message"]["content"])

    assert content() == content(skip_special_tokens=True) == ""
    assert content(skip_special_tokens=False) == "<|end|><|end|>"


def test_detokenize_turns_tokens_back(server: LiveServer) -> None:
    """Text as it was; a run of image positions is the image's tag."""
    for prompt in ("", "hello <|end|> wörld \U0001f600", "a\nb"):
        tokens = post(server, "/tokenize", prompt=prompt).json()["tokens"]
        found = post(server, "/detokenize", tokens=tokens).json()
        assert found["prompt"].removeprefix("<s>").removeprefix(" ") == prompt
    tokens = post(server, "/tokenize", messages=image_message(data_url(png(40, 30)))).json()
    text = post(server, "/detokenize", tokens=tokens["tokens"]).json()["prompt"]
    assert text.count("<|image_1|>") == 1
    assert text.startswith("<s><|user|>")
    assert text.rstrip().endswith("<|assistant|>")
    assert post(server, "/detokenize", tokens=[]).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({}, ["tokens"]),
        ({"tokens": "hello"}, ["tokens"]),
        ({"tokens": [1, "x"]}, ["tokens", 1]),
        ({"tokens": [1, 10**6]}, ["tokens", 1]),
        ({"tokens": [1, -2]}, ["tokens", 1]),
        ({"tokens": [1] * 79_999}, None),
    ],
)
def test_bad_tokens(server: LiveServer, body: dict[str, Any], loc: list[Any] | None) -> None:
    response = post(server, "/detokenize", **body)
    if loc is None:
        assert response.status_code == 200
    else:
        check_error(response, 422, "invalid_parameter", loc)


def test_version_and_window(server: LiveServer) -> None:
    version = httpx2.get(f"{server.url}/version", headers=AUTHORIZED)
    assert version.json() == {"version": __version__}
    (card,) = httpx2.get(f"{server.url}/v1/models", headers=AUTHORIZED).json()["data"]
    assert (card["max_model_len"], card["default_parameters"]) == (8192, {})
