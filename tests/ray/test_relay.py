"""Answers that are made in one process and sent by another."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

import model
from server.errors import ApiError
from server.http.sse import ChunkStream, StreamBrokenError
from server.ray import relay
from tests.support.waiting import eventually_async

SCOPE: Scope = {"type": "http", "path": "/", "headers": [], "app": object()}
START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream"), (b"x-request-id", b"1")],
}
ENDED: Any = ApiError(503, "overloaded", "it has ended")


def part(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends the body's bytes, one at a time; at a question mark it fails, at a dot it waits."""
    await send(START)
    for number in (await receive())["body"]:
        if number == ord("?"):
            raise ValueError("secret")
        if number == ord("."):
            assert (await receive())["type"] == "never"
        await send(part(bytes([number])))
    await send(part(b"", more=False))


def body_of(batches: list[relay.MessageBatch]) -> bytes:
    return b"".join(message.get("body", b"") for batch in batches for message in batch)


def told(error: BaseException) -> str:
    """What a log says of an error."""
    return "".join(traceback.format_exception(error))


async def fails() -> AsyncGenerator[bytes, None]:
    raise model.GrammarError("secret", ("guided_regex",), "secret")
    yield b""


async def fails_on_its_way(scope: Scope, receive: Receive, send: Send) -> None:
    stream = ChunkStream(fails(), lambda: None)
    await stream({"method": "POST", **scope}, receive, send)


def test_words_of_a_request_are_for_the_client_alone(caplog: pytest.LogCaptureFixture) -> None:
    batches: list[relay.MessageBatch] = []

    async def run() -> None:
        async for batch in relay.message_batches(fails_on_its_way, SCOPE, b""):
            batches.append(batch)

    with pytest.raises(StreamBrokenError) as raised:
        asyncio.run(run())
    event = body_of(batches).decode()
    assert json.loads(event.removeprefix("data: "))["error"]["message"] == "secret"
    assert "secret" not in told(raised.value) + str(raised.value.__cause__) + caplog.text
    assert "stream aborted: invalid_grammar" in caplog.text


def test_only_what_travels_is_passed_on() -> None:
    assert relay.portable(SCOPE) == {"type": "http", "path": "/", "headers": []}


def test_batches_are_the_messages_in_order() -> None:
    async def run() -> list[relay.MessageBatch]:
        return [batch async for batch in relay.message_batches(echo, SCOPE, b"abc")]

    batches = asyncio.run(run())
    assert batches[0][0] == START
    assert body_of(batches) == b"abc"
    assert batches[-1][-1] == part(b"", more=False)


def test_a_failure_is_told_without_its_words() -> None:
    batches: list[relay.MessageBatch] = []

    async def run() -> None:
        async for batch in relay.message_batches(echo, SCOPE, b"ab?c"):
            batches.append(batch)

    with pytest.raises(StreamBrokenError, match=r"^ValueError$") as raised:
        asyncio.run(run())
    assert raised.value.__cause__ is None
    assert body_of(batches) == b"ab"


@pytest.mark.parametrize("close", [True, False])
def test_the_application_ends_when_nobody_listens(close: bool) -> None:
    ended = asyncio.Event()
    asked: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def counted() -> Message:
            asked.append(1)
            return await receive()

        try:
            await echo(scope, counted, send)
        finally:
            ended.set()

    async def run() -> None:
        batches = relay.message_batches(app, SCOPE, b"a.b")
        got = [await anext(batches)]
        if close:
            await batches.aclose()
        else:
            waiting = asyncio.ensure_future(anext(batches))
            await eventually_async(lambda: len(asked) == 2)  # at the dot
            waiting.cancel()
        await eventually_async(ended.is_set)
        assert body_of(got) in (b"", b"a")

    asyncio.run(run())


@pytest.mark.parametrize("lost", [True, False])
def test_a_response_is_whole_or_broken_off(lost: bool) -> None:
    sent: list[Message] = []

    async def others() -> AsyncGenerator[relay.MessageBatch, None]:
        yield [part(b"b"), part(b"c", more=lost)]
        if lost:
            raise ENDED

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        relayed = relay.RelayedResponse([dict(START), part(b"a")], others())
        response = relay.AppResponse(relayed, without="x-request-id")
        await response(SCOPE, None, send)  # type: ignore[arg-type]

    if lost:
        with pytest.raises(StreamBrokenError) as raised:
            asyncio.run(run())
        assert "it has ended" not in told(raised.value)
        event = sent.pop()["body"].decode()
        assert json.loads(event.removeprefix("data: "))["error"]["code"] == "overloaded"
        assert event.endswith("\n\n")
    else:
        asyncio.run(run())
    assert sent[0]["headers"] == [(b"content-type", b"text/event-stream")]
    assert body_of([sent]) == b"abc"
    assert sent[-1]["more_body"] == lost
