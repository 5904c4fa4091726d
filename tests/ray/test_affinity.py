"""Which requests go to one replica."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from server.ray.affinity import affinity
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


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b"1", b"{}", b"\xff", b"[" * 100_000, b"," * 300_000),
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
