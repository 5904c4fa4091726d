"""What a client may get wrong in JSON: a 4xx that names the field, and nobody else notices."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import httpx2
import pytest

from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import AUTHORIZED, HELLO, check_error, data_url, image_message, png

pytestmark = pytest.mark.usefixtures("undisturbed")

SOON = 20  # seconds for a refusal, on any machine


def huge_png(width: int, height: int) -> bytes:
    """A valid PNG of a few KB that decodes to hundreds of megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    rows = zlib.compress(rows, 9) if len(rows) > 100_000 else rows
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )


def with_image(url: str) -> dict[str, Any]:
    return {"messages": image_message(url)}


IMAGE = ["messages", 0, "content", 0, "image_url", "url"]
GOOD = png(40, 30)
# name: (JSON body, status, code, location of the field)
BODIES: dict[str, tuple[Any, int, str, list[Any]]] = {
    "not an object": ([1], 422, "invalid_parameter", []),
    "no messages": ({}, 422, "invalid_parameter", ["messages"]),
    "empty messages": ({"messages": []}, 422, "invalid_parameter", ["messages"]),
    "messages null": ({"messages": None}, 422, "invalid_parameter", ["messages"]),
    "messages a string": ({"messages": "hi"}, 422, "invalid_parameter", ["messages"]),
    "message a string": ({"messages": ["hi"]}, 422, "invalid_parameter", ["messages", 0]),
    "unknown role": (
        {"messages": [{"role": "king", "content": "x"}]},
        422,
        "invalid_parameter",
        ["messages", 0, "role"],
    ),
    "tool without content": (
        {"messages": [{"role": "tool", "tool_call_id": "call_1"}]},
        422,
        "invalid_parameter",
        ["messages", 0, "content"],
    ),
    "content null": (
        {"messages": [{"role": "user", "content": None}]},
        422,
        "invalid_parameter",
        ["messages", 0, "content"],
    ),
    "content missing": (
        {"messages": [{"role": "user"}]},
        422,
        "invalid_parameter",
        ["messages", 0, "content"],
    ),
    "content empty list": (
        {"messages": [{"role": "user", "content": []}]},
        422,
        "invalid_parameter",
        ["messages", 0, "content"],
    ),
    "unknown part": (
        {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
        422,
        "invalid_parameter",
        ["messages", 0, "content", 0],
    ),
    "extra key in a part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "smell": 1}]}]},
        422,
        "extra_forbidden",
        ["messages", 0, "content", 0, "smell"],
    ),
    "audio": (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        422,
        "modality_not_supported",
        ["messages", 0, "content", 0],
    ),
    "tool calls": (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
        422,
        "invalid_parameter",
        ["messages", 0, "tool_calls", 0, "function"],
    ),
    "image null": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": None}]}]},
        422,
        "invalid_parameter",
        IMAGE[:-1],
    ),
    "remote image": (with_image("https://example.com/a.png"), 422, "modality_not_supported", IMAGE),
    "file image": (with_image("file:///etc/passwd"), 422, "modality_not_supported", IMAGE),
    "svg": (with_image("data:image/svg+xml;base64,AAAA"), 422, "modality_not_supported", IMAGE),
    "no base64": (with_image("data:image/png,abc"), 422, "modality_not_supported", IMAGE),
    "seed's placeholder": (
        with_image("data:image/jpg;base64,0xABCDFGHIJKLMNOPQRSTUVWXYZ..."),
        422,
        "invalid_image",
        IMAGE,
    ),
    "truncated base64": (with_image(data_url(GOOD)[:-5]), 422, "invalid_image", IMAGE),
    "broken percent": (with_image(data_url(GOOD)[:-4] + "%3"), 422, "invalid_image", IMAGE),
    "percent of no base64": (
        with_image(data_url(GOOD).replace("A", "%2D")),
        422,
        "invalid_image",
        IMAGE,
    ),
    "empty image": (with_image("data:image/png;base64,"), 422, "invalid_image", IMAGE),
    "text as image": (with_image(data_url(b"hello " * 50)), 422, "invalid_image", IMAGE),
    "truncated png": (with_image(data_url(GOOD[: len(GOOD) // 2])), 422, "invalid_image", IMAGE),
    "png without its end": (with_image(data_url(GOOD[:-20])), 422, "invalid_image", IMAGE),
    "pixel bomb": (with_image(data_url(huge_png(20000, 20000))), 422, "invalid_image", IMAGE),
    "1x30000": (with_image(data_url(png(1, 30000))), 422, "invalid_image", IMAGE),
    "two images": (
        {
            "messages": [
                {"role": "user", "content": image_message(data_url(GOOD))[0]["content"] * 2}
            ]
        },
        422,
        "too_many_images",
        ["messages", 0, "content"],
    ),
    "image in a system message": (
        {"messages": [{**image_message(data_url(GOOD))[0], "role": "system"}, *HELLO]},
        422,
        "modality_not_supported",
        ["messages", 0, "content"],
    ),
    "temperature 9": (
        {"messages": HELLO, "temperature": 9},
        422,
        "invalid_parameter",
        ["temperature"],
    ),
    "temperature word": (
        {"messages": HELLO, "temperature": "hot"},
        422,
        "invalid_parameter",
        ["temperature"],
    ),
    "temperature true": (
        {"messages": HELLO, "temperature": True},
        422,
        "invalid_parameter",
        ["temperature"],
    ),
    "max_tokens true": (
        {"messages": HELLO, "max_tokens": True},
        422,
        "invalid_parameter",
        ["max_tokens"],
    ),
    "top_p 1.5": ({"messages": HELLO, "top_p": 1.5}, 422, "invalid_parameter", ["top_p"]),
    "max_tokens -1": (
        {"messages": HELLO, "max_tokens": -1},
        422,
        "invalid_parameter",
        ["max_tokens"],
    ),
    "max_tokens 1.5": (
        {"messages": HELLO, "max_tokens": 1.5},
        422,
        "invalid_parameter",
        ["max_tokens"],
    ),
    "huge seed": ({"messages": HELLO, "seed": 2**70}, 422, "invalid_parameter", ["seed"]),
    "n 0": ({"messages": HELLO, "n": 0}, 422, "invalid_parameter", ["n"]),
    "empty stop": ({"messages": HELLO, "stop": [""]}, 422, "invalid_parameter", ["stop", 0]),
    "bias of no token": (
        {"messages": HELLO, "logit_bias": {"999999": 1}},
        422,
        "invalid_parameter",
        ["logit_bias"],
    ),
    "bias too large": (
        {"messages": HELLO, "logit_bias": {"5": 101}},
        422,
        "invalid_parameter",
        ["logit_bias", "5"],
    ),
    "top_logprobs alone": (
        {"messages": HELLO, "top_logprobs": 3},
        422,
        "parameter_not_supported",
        ["top_logprobs"],
    ),
    "tools": (
        {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]},
        422,
        "parameter_not_supported",
        ["tools"],
    ),
    "unknown parameter": ({"messages": HELLO, "colour": 1}, 400, "extra_forbidden", ["colour"]),
    "engine's extra without the header": (
        {"messages": HELLO, "top_k": 5},
        400,
        "extra_forbidden",
        ["top_k"],
    ),
    "prompt over the window": (
        {"messages": [{"role": "user", "content": "many words " * 20_000}]},
        400,
        "context_length_exceeded",
        ["messages"],
    ),
    "huge prompt": (
        {"messages": [{"role": "user", "content": "a" * 8_000_000}]},
        400,
        "context_length_exceeded",
        ["messages"],
    ),
    "too many messages": ({"messages": HELLO * 5000}, 422, "invalid_parameter", ["messages"]),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_bodies(server: LiveServer, name: str, stream: bool) -> None:
    body, status, code, loc = BODIES[name]
    if stream and isinstance(body, dict):
        body = {**body, "stream": True}
    url = f"{server.url}/chat/completions"
    response = httpx2.post(url, json=body, headers=AUTHORIZED, timeout=SOON)
    check_error(response, status, code, loc)
