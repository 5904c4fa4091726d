"""The example of nginx when servers fail, drain or end."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.deploy.balanced import Balanced, balancing, wait_until_running
from tests.support.servers.faulty_server import KILL, SLOW
from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import AUTHORIZED, HELLO, check_error
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow  # in all


@pytest.fixture
def doomed(tiny: Path, tmp_path: Path) -> Iterator[Balanced]:
    """Servers of the test's own, which it ends."""
    with balancing(tiny, tmp_path) as made:
        yield made


def posts(server: LiveServer) -> list[str]:
    """The lines of the log about answers that were asked for."""
    assert httpx2.get(f"{server.url}/health/live", headers={"x-request-id": "last"}).is_success
    eventually(lambda: any("request_id=last" in line for line in server.log))
    found = [line for line in server.log if " method=POST " in line]
    server.log.clear()
    return found


def test_what_may_have_killed_a_server_is_not_sent_to_another(doomed: Balanced) -> None:
    one, two = doomed.servers.values()
    header = {"X-Conversation-Id": a_chat_of(doomed, "one"), "extra-parameters": "pass-through"}
    posts(two)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(doomed.ask, header, seed=SLOW, ignore_eos=True, max_tokens=400)
        wait_until_running(one, 1)
        one.stop(signal.SIGKILL)
        answer = asked.result(60)
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) > 0
    assert posts(two) == []
    assert (
        doomed.ask(header).json()["model"] == "two"
    )  # what comes now has not been sent to anybody


def test_what_an_engine_failed_at_is_not_sent_to_another(doomed: Balanced) -> None:
    two = doomed.servers["two"]
    header = {"X-Conversation-Id": a_chat_of(doomed, "one"), "extra-parameters": "pass-through"}
    posts(two)
    more = {"seed": KILL, "ignore_eos": True, "max_tokens": 20}
    check_error(doomed.ask(header, **more), 503, "engine_dead", [])
    assert posts(two) == []
    assert doomed.ask(header).json()["model"] == "two"


def test_a_draining_server_is_left_and_when_all_drain_they_say_so(doomed: Balanced) -> None:
    one, two = doomed.servers.values()
    chats = {name: {"X-Conversation-Id": a_chat_of(doomed, name)} for name in ("one", "two")}
    with doomed.long_answer(chats["one"]) as first, doomed.long_answer(chats["two"]) as second:
        held = [first.iter_lines(), second.iter_lines()]  # they hang up when they are dropped
        for lines in held:
            next(lines)
        drain(one)
        assert doomed.who(**chats["one"]) == "two"
        drain(two)
        refused = doomed.ask(chats["one"])
    assert refused.headers.pop("retry-after") == "1"
    body = check_error(refused, 503, "overloaded", [])
    assert body["message"] == "the server is shutting down"


def a_chat_of(balanced: Balanced, name: str) -> str:
    """A conversation that is that server's."""
    chats = (f"chat-{number}" for number in range(100))
    return next(chat for chat in chats if balanced.who(X_Conversation_Id=chat) == name)


def drain(server: LiveServer) -> None:
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: httpx2.get(f"{server.url}/health").json() == {"status": "draining"})


def test_when_servers_go_the_others_go_on(doomed: Balanced) -> None:
    """One in the middle of an answer, then the other."""
    first = {f"chat-{i}": doomed.who(x_conversation_id=f"chat-{i}") for i in range(12)}
    its = next(chat for chat, name in first.items() if name == "one")
    with doomed.long_answer({"X-Conversation-Id": its}) as response:
        lines = response.iter_lines()
        next(lines)
        doomed.servers["one"].stop(signal.SIGKILL)
        with pytest.raises(httpx2.TransportError):  # lost, and not as if it were whole
            list(lines)
    after = {name: doomed.who(x_conversation_id=name) for name in first}
    assert set(after.values()) == {"two"}
    own = doomed.servers["two"]
    body = {"messages": HELLO, "temperature": 9}
    shape = httpx2.post(f"{own.url}/chat/completions", json=body, headers=AUTHORIZED).json()
    own.stop(signal.SIGKILL)
    refused = doomed.ask({})
    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/json"
    assert refused.headers["x-ms-error-code"] == "overloaded"
    assert int(refused.headers["retry-after"]) > 0
    error = json.loads(refused.text)
    assert error.keys() == shape.keys()
    assert error["error"].keys() == shape["error"].keys()
    assert error["message"] == error["error"]["message"]
