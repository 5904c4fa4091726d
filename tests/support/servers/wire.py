"""Requests and errors as the tests of the wire share them."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx2
from PIL import Image

from tests.support.servers.live_server import API_KEY, LiveServer

AUTHORIZED = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
HELLO = [{"role": "user", "content": "hello"}]


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes, media: str = "image/png") -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def chart(media: str = "jpeg") -> str:
    """An image of the size of the one in Azure's samples."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((1900, 1069)).save(file, "JPEG")
    return data_url(file.getvalue(), f"image/{media}")


def image_message(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def chat(
    server: LiveServer, path: str = "/chat/completions", headers: Any = None, **body: Any
) -> httpx2.Response:
    """Post a chat completion, by default a short one of ``HELLO``."""
    merged = httpx2.Headers(AUTHORIZED)
    merged.update(headers)
    body = {"messages": HELLO, "max_tokens": 3, **body}
    return httpx2.post(server.url + path, json=body, headers=merged, timeout=120)


def check_error(
    response: httpx2.Response, status: int, code: str, loc: list[Any]
) -> dict[str, Any]:
    """The superset body of the contract."""
    body = response.json()
    assert response.status_code == status, body
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-ms-error-code"] == code
    error = body["error"]
    assert (body["status"], body["code"], body["message"]) == (status, code, error["message"])
    assert (error["status"], error["code"]) == (status, code)
    assert error["message"]
    assert error["details"] == []
    assert error["type"]
    dotted = ".".join(map(str, loc)) or None
    assert error["param"] == error["target"] == dotted
    if status == 422:
        assert body["detail"][0]["loc"] == ["body", *loc]
        assert {"input", "msg", "type"} < body["detail"][0].keys()
    assert "retry-after" not in response.headers
    return body
