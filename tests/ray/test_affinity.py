"""Which requests go to one replica."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from server.ray.affinity import affinity, path_session, pin_of
from server.responses.ids import item_id, response_id
from tests.support.servers.wire import data_url, image_message, png


def key(*messages: dict[str, Any], **more: Any) -> str:
    return affinity(json.dumps({"messages": messages, **more}).encode())


def said(text: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


def shown(picture: bytes, text: str) -> dict[str, Any]:
    (message,) = image_message(data_url(picture))
    return said([{"type": "text", "text": text}, *message["content"]])


def test_a_conversation_stays_where_it_began() -> None:
    first = key(said("be kind", "system"), said("hello"))
    assert len(first) == 32
    later = [said("hi", "assistant"), said("and now?"), shown(png(5, 5), "what is it?")]
    assert key(said("be kind", "system"), said("hello"), *later, stream=True) == first
    assert key(said("be kind", "system"), said([{"type": "text", "text": "hello"}])) == first


def test_other_beginnings_go_elsewhere() -> None:
    keys = {
        key(said("hello")),
        key(said("Hello")),
        key(said("be kind", "system"), said("hello")),
        key(said("be brief", "system"), said("hello")),
        key(said("hel"), said("lo")),
        key(shown(png(5, 5), "hello")),
        key(shown(png(6, 5), "hello")),
    }
    assert len(keys) == 7


def test_questions_about_one_image_meet() -> None:
    """It stands before all text in the prompt."""
    asked = key(said("be kind", "system"), shown(png(5, 5), "what is it?"))
    assert key(shown(png(5, 5), "how large is it?")) == asked


def response_key(**body: Any) -> str:
    return affinity(json.dumps(body).encode())


def test_responses_stay_where_they_began() -> None:
    first = response_key(instructions="be kind", input="hello")
    assert len(first) == 32
    later = [said("hello"), said("hi", "assistant"), said("and now?")]
    assert response_key(instructions="be kind", input=later) == first
    assert response_key(instructions="be brief", input="hello") != first
    image = {"type": "input_image", "image_url": data_url(png(5, 5))}
    asked = [said([{"type": "input_text", "text": "what is it?"}, image])]
    assert response_key(input=asked) == key(shown(png(5, 5), "what is it?"))


def test_stored_responses_are_looked_for_where_they_are() -> None:
    own = response_id("0" * 32, "abC1")
    item = {"type": "item_reference", "id": item_id(own, "msg", 0)}
    for body in ({"previous_response_id": own, "input": "x"}, {"input": [said("x"), item]}):
        assert pin_of(response_key(**body)) == ("abC1", True)
    for path in (f"/v1/responses/{own}", f"/openai/responses/{own}/input_items"):
        assert pin_of(path_session(path)) == ("abC1", False)
    elsewhere = [own[:-4], "resp_1", "resp_" + "g" * 40]
    assert [path_session(f"/v1/responses/{name}") for name in elsewhere] == [""] * 3
    assert path_session("/v1/responses") == path_session("/health") == ""
    assert pin_of(response_key(previous_response_id="resp_1", input="x")) is None


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b"1", b"{}", b"\xff", b"[" * 100_000, b"," * 300_000),
        *(b'{"input": 1}', b'{"input": [1, {"id": 1, "type": "item_reference"}]}'),
        *(b'{"messages": 1}', b'{"messages": [1, null, []]}', b'{"messages": [{}]}'),
        b'{"messages": [{"role": [], "content": [1, {"image_url": 1}, {"image_url": {"url": []}}]}]}',
    ],
)
def test_what_is_no_conversation_has_none(body: bytes) -> None:
    assert affinity(body) == ""


def test_texts_that_json_may_hold_and_utf_8_may_not() -> None:
    assert affinity(b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}]}')
    affinity(b'{"messages": [{"role": "user", "content": "\\ud800"}]}')  # refused elsewhere


def test_the_largest_image_freezes_no_gateway() -> None:
    body = json.dumps({"messages": [shown(b"x" * 24_000_000, "?")]}).encode()
    started = time.process_time()
    assert affinity(body)
    assert time.process_time() - started < 5
