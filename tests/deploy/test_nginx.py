"""The example of nginx before several servers: where requests go, and what passes."""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from server.settings import Settings
from tests.deploy.balanced import CONFIG, Balanced, balancing, running, wait_until_running
from tests.support.servers.faulty_server import SLOW
from tests.support.servers.live_server import API_KEY
from tests.support.servers.wire import AUTHORIZED

pytestmark = pytest.mark.slow  # in all


def seconds(directive: str) -> int:
    found = re.search(rf"{directive} +(\d+)s;", CONFIG)
    assert found is not None
    return int(found[1])


def default(name: str) -> Any:
    return Settings.model_fields[name].default


def test_its_limits_leave_the_servers_their_own() -> None:
    assert seconds("proxy_read_timeout") > default("request_timeout")
    assert seconds("proxy_send_timeout") > default("body_timeout")
    assert seconds("client_body_timeout") >= default("body_timeout")
    size = re.search(r"client_max_body_size (\d+)m;", CONFIG)
    assert size is not None
    assert int(size[1]) * 2**20 > default("max_body_mb") * 1e6


@pytest.fixture(scope="module")
def balanced(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    with balancing(tiny, tmp_path_factory.mktemp("nginx")) as made:
        yield made


def test_a_conversation_stays_where_it_began(balanced: Balanced) -> None:
    first = {f"chat-{i}": balanced.who(x_conversation_id=f"chat-{i}") for i in range(24)}
    assert set(first.values()) == {"one", "two"}  # about as many each
    again = {name: balanced.who(x_conversation_id=name) for name in reversed(first)}
    assert again == first
    # The cache that it is for.
    question = [{"role": "user", "content": "tell me a story " * 40}]
    header = {"X-Conversation-Id": "story"}
    cached = [
        balanced.ask(header, messages=question).json()["usage"]["prompt_tokens_details"]
        for _ in range(2)
    ]
    assert cached[0]["cached_tokens"] < 20 < cached[1]["cached_tokens"]


def test_one_503_moves_no_conversation(balanced: Balanced) -> None:
    header = {"X-Conversation-Id": "busy"}
    first = balanced.who(**header)
    busy = [{"role": "user", "content": "BUSY"}]
    assert balanced.ask(header, messages=busy).status_code == 503
    assert balanced.who(**header) == first


def test_without_the_header_a_key_and_address_are_one_conversation(balanced: Balanced) -> None:
    assert len({balanced.who() for _ in range(6)}) == 1


def test_tokens_come_one_by_one(balanced: Balanced) -> None:
    server = balanced.servers[balanced.who()]
    client = openai.OpenAI(
        base_url=f"{balanced.url}/v1",
        api_key=API_KEY,
        http_client=httpx2.Client(verify=balanced.trust, timeout=60),
    )
    question: ChatCompletionUserMessageParam = {"role": "user", "content": "hello"}
    stream = client.chat.completions.create(
        model="any",
        messages=[question],
        max_tokens=8,
        seed=SLOW,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    assert [running(server) for _ in stream].count(1) > 2  # they come before it has ended


def test_leaving_reaches_the_server(balanced: Balanced) -> None:
    name = balanced.who()
    server = balanced.servers[name]
    with balanced.long_answer({}) as response:
        lines = response.iter_lines()  # held: it hangs up when it is dropped
        next(lines)
        wait_until_running(server, 1)  # the first event may come before
    wait_until_running(server, 0)


def test_the_servers_own_errors_pass(balanced: Balanced) -> None:
    assert balanced.ask({}, temperature=9).json()["error"]["param"] == "temperature"
    wrong = balanced.ask({"Authorization": "Bearer wrong"})
    assert (wrong.status_code, wrong.json()["code"]) == (401, "Unauthorized")
    large = balanced.ask({}, messages=[{"role": "user", "content": "x" * 33_000_000}])
    assert (large.status_code, large.json()["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/metrics/",
        "/metrics//",
        "//metrics",
        "/metrics%2f",
        "/%6detrics",
        "/./metrics/.",
    ],
)
def test_metrics_are_not_for_everybody(balanced: Balanced, path: str) -> None:
    port = int(balanced.url.rsplit(":", 1)[1])
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=balanced.trust)
    connection.request("GET", path, headers=AUTHORIZED)  # as it is, where others make it plain
    with contextlib.closing(connection), connection.getresponse() as answer:
        assert answer.status == 404
        assert "x-request-id" not in answer.headers  # nginx's own
