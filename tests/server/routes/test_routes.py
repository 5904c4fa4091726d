"""The routes under all their names, and paths as clients write them."""

from __future__ import annotations

import httpx2
import pytest

from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.wire import chat, check_error

KEY = {"api-key": API_KEY}
INFO = {
    "model_name": "phi3v-tiny",
    "model_type": "chat-completions",
    "model_provider_name": "phi3v-server",
}


@pytest.mark.parametrize("path", ["/info", "/models/info", "//info", "/info/", "//models//info/"])
def test_info(server: LiveServer, path: str) -> None:
    response = httpx2.get(f"{server.url}{path}?api-version=2024-05-01-preview", headers=KEY)
    assert (response.status_code, response.json()) == (200, INFO)


@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1", "/openai"])
def test_models(server: LiveServer, prefix: str) -> None:
    (card,) = httpx2.get(f"{server.url}{prefix}/models", headers=KEY).json()["data"]
    assert card["id"] == "phi3v-tiny"
    assert httpx2.get(f"{server.url}{prefix}/models/phi3v-tiny/", headers=KEY).json() == card
    projects = httpx2.get(f"{server.url}/api/projects/any-name/openai/v1/models", headers=KEY)
    assert projects.json()["data"] == [card]
    stranger = httpx2.get(f"{server.url}{prefix}/models/other", headers=KEY)
    check_error(stranger, 404, "model_not_found", [])


@pytest.mark.parametrize(
    ("path", "takes_extras"),
    [
        ("/chat/completions", False),
        ("/models/chat/completions", False),
        ("//chat/completions", False),
        ("/chat/completions/", False),
        ("/v1/chat/completions", True),
        ("/v1//chat/completions", True),
        ("/openai/v1/chat/completions", True),
        ("/openai/deployments/any-name/chat/completions?api-version=2024-10-21", True),
        ("/api/projects/any-name/openai/v1/chat/completions", True),
    ],
)
def test_chat_completions(server: LiveServer, path: str, takes_extras: bool) -> None:
    assert chat(server, path).json()["object"] == "chat.completion"
    assert chat(server, path, stream=True).text.endswith("data: [DONE]\n\n")
    extra = chat(server, path, top_k=1)
    if takes_extras:
        assert extra.status_code == 200
    else:
        check_error(extra, 400, "extra_forbidden", ["top_k"])


@pytest.mark.parametrize(
    "path",
    [
        "/embeddings",
        "/images/embeddings",
        "/models/embeddings",
        "/models/images/embeddings",
        "/v1/embeddings",
        "/openai/deployments/any-name/embeddings",
    ],
)
def test_embeddings_are_refused_in_azures_words(server: LiveServer, path: str) -> None:
    body = check_error(httpx2.post(server.url + path, json={}, headers=KEY), 404, "not_found", [])
    assert body["message"] == "Modality not supported by the model"
    check_error(httpx2.post(server.url + path, json={}), 401, "Unauthorized", [])


def test_nothing_else_is_there(server: LiveServer) -> None:
    body = check_error(httpx2.get(f"{server.url}/nowhere", headers=KEY), 404, "not_found", [])
    assert "/nowhere" in body["message"]


def test_the_documentation_loads_nothing_from_elsewhere(server: LiveServer) -> None:
    page = httpx2.get(f"{server.url}/docs/").text
    links = [part.split('"')[0] for name in ('src="', 'href="') for part in page.split(name)[1:]]
    assert len(links) == 3
    for link in links:
        assert httpx2.get(server.url + link).status_code == 200
