"""What a bug looks like from outside. What else is around requests, ``test_protocol`` sees."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from server.app import create_app
from server.service import Service
from server.settings import Settings
from tests.support.servers.wire import check_error


def test_a_bug_is_answered_as_any_error_is() -> None:
    app = create_app(Service(Settings(_cli_parse_args=["--allowed-origins", "*"])))

    @app.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError

    async def ask(raises: bool) -> httpx2.Response:
        transport = httpx2.ASGITransport(app, raise_app_exceptions=raises)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {"x-ms-client-request-id": "mine", "origin": "https://page.example"}
            return await client.get("/bug", headers=headers)

    response = asyncio.run(ask(raises=False))
    check_error(response, 500, "internal_error", [])
    assert response.headers["x-ms-client-request-id"] == "mine"
    assert response.headers["access-control-allow-origin"] == "*"
    with pytest.raises(ZeroDivisionError):  # uvicorn logs it
        asyncio.run(ask(raises=True))
