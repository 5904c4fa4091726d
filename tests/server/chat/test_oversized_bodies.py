"""Bodies that are small on the wire and large to a validator: refused at once, beside a stream."""

from __future__ import annotations

import io
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.support.servers.live_server import LiveServer
from tests.support.servers.neighbours import FROZEN
from tests.support.servers.wire import AUTHORIZED, data_url
from tests.support.waiting import eventually

HELLO = {"role": "user", "content": "hello"}


def body(**more: Any) -> bytes:
    return json.dumps({"messages": [HELLO], "max_tokens": 1, **more}).encode()


def parts(*content: Any) -> bytes:
    return body(messages=[{"role": "user", "content": content}])


def metadata(value: bytes) -> bytes:
    return body()[:-1] + b', "metadata": ' + value + b"}"


def many(value: bytes, count: int) -> bytes:
    return b"[" + value + (b"," + value) * (count - 1) + b"]"


def keys(count: int) -> dict[str, int]:
    return {f"key{i}": 1 for i in range(count)}


def image(url: str) -> bytes:
    return parts({"type": "image_url", "image_url": {"url": url}})


NEST = b"[" * 60 + b"]" * 60


def empty_parts(messages: int, each: int) -> bytes:
    content = [{"type": "text", "text": ""}] * each
    return body(messages=[{"role": "user", "content": content}] * messages)


# name: (body, status, field at fault; none where the body is refused unparsed or as a whole)
BODIES: dict[str, tuple[bytes, int, str | None]] = {
    "9 M numbers": (b"[" + b"1," * 9_000_000 + b"1]", 422, None),
    "70 k numbers": (b"[" + b"1," * 70_000 + b"1]", 422, None),
    "a list for a number": (body(temperature=[1] * 70_000), 422, "temperature"),
    "9 M empty objects": (b'{"messages":[' + b"{}," * 9_000_000 + b"{}]}", 422, None),
    "modalities": (body(modalities=[1] * 70_000), 422, "modalities"),
    "short modalities": (body(modalities=[1] * 20_000), 422, "modalities.0"),
    "15 M brackets": (metadata(many(NEST, 250_000)), 422, None),
    "2 M braces": (
        metadata(many(NEST.replace(b"[", b'{"":').replace(b":]", b":1}"), 20_000)),
        422,
        None,
    ),
    "70 k brackets": (metadata(many(NEST, 70_000 // 61)), 422, "metadata"),
    "7000 numbers of 4300 digits": (metadata(many(b"9" * 4300, 7000)), 422, None),
    "600 numbers of 4300 digits": (metadata(many(b"9" * 4300, 600)), 200, None),
    "5 M escapes": (metadata(rb'"' + rb"\u00e9" * 5_000_000 + b'"'), 422, None),
    "5 M escapes for an image": (image("data:image/png;base64," + "é" * 5_000_000), 422, None),
    "400 k escapes": (metadata(rb'"' + rb"\u00e9" * 400_000 + b'"'), 200, None),
    "1 M biases": (body(logit_bias=keys(1_000_000)), 422, None),
    "70 k biases": (body(logit_bias=keys(70_000)), 422, "logit_bias"),
    "1 M unknown keys": (body(**keys(1_000_000)), 422, None),
    "70 k unknown keys": (body(**keys(70_000)), 422, None),
    "a choice of 2.9 M marks": (body(guided_choice=["." * 2_900_000]), 422, "guided_choice"),
    "1000 unknown keys": (body(**keys(1000)), 200, None),
    "70 k keys in a message": (body(messages=[{**HELLO, **keys(70_000)}]), 422, "messages.0"),
    "70 k keys in a part": (
        parts({"type": "text", "text": "x", **keys(70_000)}),
        422,
        "messages.0.content.0",
    ),
    "1000 keys in each part": (
        parts(*[{"type": "text", "text": "x", **keys(1000)}] * 30),
        200,
        None,
    ),
    "1024 x 256 parts": (empty_parts(1024, 256), 422, None),
    "1024 x 20 parts": (empty_parts(1024, 20), 422, "messages"),
    "1024 x 6 bad parts": (
        body(messages=[{"role": "user", "content": [{"type": "text"}] * 6}] * 1024),
        422,
        "messages.0.content.0.text",
    ),
    "semicolons": (
        image("data:image/png" + ";" * 20_000_000),
        422,
        "messages.0.content.0.image_url.url",
    ),
    "media type parameters": (
        image("data:image/png" + ";a" * 10_000_000),
        422,
        "messages.0.content.0.image_url.url",
    ),
    "a key of 20 MB": (body(**{"k" * 20_000_000: 1}), 200, None),
    "a key of 20 MB in a message": (
        body(messages=[{**HELLO, "k" * 20_000_000: 1}]),
        200,
        None,
    ),
    "a role of 20 MB": (
        body(messages=[{"role": "r" * 20_000_000, "content": "x"}]),
        422,
        "messages.0.role",
    ),
}


@pytest.fixture(scope="module")
def arrivals(server: LiveServer) -> Iterator[list[float]]:
    """When each event of a stream that runs beside these tests arrived."""
    times: list[float] = []
    stopped = threading.Event()
    request = body(max_tokens=7000, ignore_eos=True, stream=True)

    def read() -> None:
        while not stopped.is_set():
            with httpx2.stream(
                "POST", f"{server.url}/v1/chat/completions", content=request, headers=AUTHORIZED
            ) as response:
                for line in response.iter_lines():
                    if line:
                        times.append(time.perf_counter())
                    if stopped.is_set():
                        return

    reader = threading.Thread(target=read)
    reader.start()
    eventually(lambda: len(times) >= 10)
    yield times
    stopped.set()
    reader.join(60)


@pytest.mark.parametrize("name", BODIES)
def test_oversized_bodies(server: LiveServer, arrivals: list[float], name: str) -> None:
    content, status, param = BODIES[name]
    seen = len(arrivals)
    response = httpx2.post(
        f"{server.url}/v1/chat/completions", content=content, headers=AUTHORIZED, timeout=20
    )
    eventually(lambda: len(arrivals) >= seen + 10)  # the stream has gone on
    assert (
        max(after - before for before, after in itertools.pairwise(arrivals[seen - 1 :])) < FROZEN
    )
    assert response.status_code == status
    assert response.status_code == 200 or response.json()["error"]["param"] == param
    assert len(response.content) < 20_000
    assert len(response.headers.get("x-ignored-parameters", "")) < 4000


def test_as_many_values_as_a_conversation_needs(server: LiveServer) -> None:
    """A thousand messages of several parts each."""
    response = httpx2.post(
        f"{server.url}/v1/chat/completions", content=empty_parts(1024, 6), headers=AUTHORIZED
    )
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("escaped", [{}, {"+": r"\u002B"}, {"/": r"\/"}], ids=str)
def test_an_image_as_large_as_a_body_may_be(server: LiveServer, escaped: dict[str, str]) -> None:
    """As clients of several languages write its base64."""
    picture = Image.frombytes("RGB", (2600, 2600), random.Random(1).randbytes(3 * 2600**2))
    file = io.BytesIO()
    picture.save(file, "BMP")
    content = image(data_url(file.getvalue(), "image/bmp")).decode()
    for character, escape in escaped.items():
        content = content.replace(character, escape)
    url = f"{server.url}/v1/chat/completions"
    response = httpx2.post(url, content=content.encode(), headers=AUTHORIZED, timeout=120)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("1,", 2), ("слово ", 2), ("\U0001f600", 4), ('{"a":1},', 5), ("\n\t", 2)],
)
def test_a_text_as_long_as_the_longest_context(server: LiveServer, text: str, tokens: int) -> None:
    """It is refused for its tokens, in the words that clients look for, not for its bytes."""
    content = body(messages=[{"role": "user", "content": text * (131_072 // tokens)}])
    response = httpx2.post(
        f"{server.url}/v1/chat/completions", content=content, headers=AUTHORIZED, timeout=120
    )
    assert response.json()["code"] == "context_length_exceeded"


def test_names_of_extra_parameters_are_few_and_short(server: LiveServer) -> None:
    """Azure's sentence lists them, and LiteLLM evaluates the list."""
    response = httpx2.post(
        f"{server.url}/chat/completions",
        content=body(**{f"{i}" + "k" * 100_000: 1 for i in range(20)}),
        headers=AUTHORIZED,
    )
    names = [f"{i}" + "k" * 99 for i in range(10)]
    assert response.status_code == 400
    assert f"Extra parameters {names} are not allowed" in response.json()["message"]
    assert response.json()["error"]["param"] == names[0]
    assert len(response.content) < 5000
