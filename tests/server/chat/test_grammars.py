"""Grammars that would hang, crash or swell what compiles them: refused by name, noticed by nobody."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import jsonschema_rs
import psutil
import pytest

from tests.support.servers.confined_workers import workers
from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server
from tests.support.servers.neighbours import watched
from tests.support.servers.wire import AUTHORIZED, HELLO, chat, data_url, image_message, png
from tests.support.waiting import eventually

MIB = 1 << 20
SECRET = "a-token-for-tests-of-the-hub"
RECORD = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 60}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ENDLESS = {"type": "array", "items": {"type": "string"}, "minItems": 10_000}


@pytest.fixture(scope="module")
def guided(tiny: Path) -> Iterator[LiveServer]:
    """A server of the module's own, whose workers are counted and killed."""
    live = start_server(
        *("--model", str(tiny), "--dtype", "float32"), PHI3V_API_KEY=API_KEY, HF_TOKEN=SECRET
    )
    assert asked(live, RECORD).status_code == 200  # what takes long at the first is behind it
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


def asked(server: LiveServer, schema: Any, **more: Any) -> httpx2.Response:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return chat(server, **{"max_tokens": 200, "response_format": wanted, **more})


def broken_off(server: LiveServer, request: dict[str, Any]) -> str:
    """All that comes of a stream that has no proper end."""
    url, body = f"{server.url}/v1/chat/completions", {"messages": HELLO, "stream": True, **request}
    read = ""
    with httpx2.stream("POST", url, json=body, headers=AUTHORIZED) as answer:
        try:
            for text in answer.iter_text():
                read += text
        except httpx2.RemoteProtocolError:
            return read
    pytest.fail(f"it ended: {read}")


def of(server: LiveServer) -> list[psutil.Process]:
    return workers(psutil.Process(server.process.pid))


def followers(server: LiveServer) -> list[psutil.Process]:
    """The processes that follow answers."""
    found: list[psutil.Process] = []
    for worker in of(server):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += worker.children()
    return found


def followers_of(answer: Future[httpx2.Response], server: LiveServer) -> list[psutil.Process]:
    """The processes that follow answers, of which there is one at least."""
    assert not answer.done()
    return followers(server)


def chain(length: int, link: Any, end: Any) -> dict[str, Any]:
    defs = {f"d{i}": link(f"#/$defs/d{i + 1}") for i in range(length)}
    return {"$defs": {**defs, f"d{length}": end}, "$ref": "#/$defs/d0"}


def rules(name: str, equals: str, length: int) -> str:
    lines = [f"{name}{equals} r0", *(f'r{i}{equals} "a" r{i + 1}' for i in range(length))]
    return "\n".join([*lines, f'r{length}{equals} "b"', ""])


OBJECT = {"type": "object", "required": ["a"]}
DEEP = chain(1000, lambda ref: {**OBJECT, "properties": {"a": {"$ref": ref}}}, {"type": "string"})
HOSTILE: dict[str, dict[str, Any]] = {
    "a chain of 1000 objects": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": DEEP}}
    },
    "3000 rules": {"guided_grammar": rules("start", ":", 3000)},
    "6000 rules of GBNF": {"guided_grammar": rules("root", " ::=", 6000)},
    "a repeated ambiguous lexeme": {"guided_grammar": "start: /x+/{2,4}"},
    "an ambiguous lexeme": {"guided_grammar": 'start: /a+/ "a"'},
    "39000 repeats": {"guided_regex": "(ab)?" * 39000},
    "22000 repeats": {"guided_regex": "(ab)?" * 22000},
    "repeats of repeats": {"guided_regex": "((a{1000}){1000}){1000}"},
    "45000 lines": {"guided_grammar": 'root ::= "a"' + "\n" * 45000},
    "90000 parentheses": {"guided_regex": "(" * 90000 + ")" * 90000},
}


QUICK = ("a chain of 1000 objects", "an ambiguous lexeme", "90000 parentheses")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in HOSTILE],
)
def test_what_hangs_or_kills_is_refused(guided: LiveServer, name: str) -> None:
    before = psutil.Process(guided.process.pid).memory_info().rss
    with watched(guided) as noticed:
        response = chat(guided, "/v1/chat/completions", max_tokens=4, **HOSTILE[name])
        eventually(lambda: noticed.texts)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_grammar")
    assert next(iter(HOSTILE[name])) in response.json()["error"]["message"]
    assert len(response.content) < 5000
    assert psutil.Process(guided.process.pid).memory_info().rss < before + 100 * MIB


def test_a_chain_of_references(guided: LiveServer) -> None:
    """Refused for its keys, or deeper in an object's allowed number of them."""
    for length in (900, 3000):
        schema = chain(length, lambda ref: {"$ref": ref}, {"type": "string"})
        response = asked(guided, schema)
        assert response.status_code in (200, 422)
    assert asked(guided, RECORD).status_code == 200


def test_one_that_hangs_in_the_middle_of_an_answer(guided: LiveServer) -> None:
    """Answers beside it end as they should, also those to a grammar."""
    hanging = {"guided_grammar": 'start: ("b" | "c") /a+/ "a"', "max_tokens": 8}
    with watched(guided), ThreadPoolExecutor(5) as pool:
        others = [pool.submit(asked, guided, RECORD, seed=i) for i in range(4)]
        response = chat(guided, "/v1/chat/completions", **hanging)
        answers = [other.result() for other in others]
    assert (response.status_code, response.json()["code"]) == (422, "invalid_grammar")
    for answer in answers:
        choice = answer.json()["choices"][0]
        if choice["finish_reason"] == "stop":
            jsonschema_rs.validate(RECORD, json.loads(choice["message"]["content"]))
    assert '"invalid_grammar"' in broken_off(guided, hanging)


@pytest.mark.slow
def test_grammars_whose_processes_are_killed(guided: LiveServer) -> None:
    """At most the answer that one was busy with ends, with an error; the others are as they were."""
    request: dict[str, Any] = {"temperature": 1.0, "max_tokens": 1500}
    expected = [asked(guided, ENDLESS, seed=i, **request).json()["choices"] for i in range(3)]
    with watched(guided), ThreadPoolExecutor(3) as pool:
        running = [pool.submit(asked, guided, ENDLESS, seed=i, **request) for i in range(3)]
        killed: list[psutil.Process] = []

        def enough() -> bool:
            for child in followers(guided):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
                    killed.append(child)
            return len(killed) >= 5 or all(each.done() for each in running)

        eventually(enough, seconds=200)
        outcomes = [each.result() for each in running]
    assert killed
    for outcome, choices in zip(outcomes, expected, strict=True):
        if outcome.status_code == 200:
            assert outcome.json()["choices"] == choices
        else:
            assert (outcome.status_code, outcome.json()["code"]) == (422, "invalid_grammar")


def test_grammars_all_of_whose_processes_are_killed(guided: LiveServer) -> None:
    """There is nothing to go on from: the answer ends, and the next one is as ever."""
    request: dict[str, Any] = {"temperature": 1.0, "max_tokens": 3000}
    with watched(guided), ThreadPoolExecutor(1) as pool:
        running = pool.submit(asked, guided, ENDLESS, seed=1, **request)
        found = eventually(lambda: followers_of(running, guided))
        kill([*of(guided), *found])
        assert running.result().status_code == 422
        assert asked(guided, ENDLESS, max_tokens=9).status_code == 200


def kill(processes: list[psutil.Process]) -> None:
    """Until each has ended, reaped or not."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    eventually(lambda: not any(map(lives, processes)))


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_other_processes_are_replaced_too(guided: LiveServer) -> None:
    with watched(guided):
        kill(of(guided))
        assert asked(guided, RECORD).status_code == 200
        kill(psutil.Process(guided.process.pid).children())
        assert asked(guided, {"const": "new"}).json()["choices"][0]["message"]["content"] == '"new"'


def test_a_grammar_that_stands_still_holds_nobody_up(guided: LiveServer) -> None:
    """The others go on without it, and it goes on where it was."""
    request: dict[str, Any] = {"temperature": 1.0, "seed": 1, "max_tokens": 2000}
    expected = asked(guided, ENDLESS, **request).json()["choices"]
    with watched(guided) as noticed, ThreadPoolExecutor(1) as pool:
        running = pool.submit(asked, guided, ENDLESS, **request)
        found = eventually(lambda: followers_of(running, guided))
        for child in found:
            child.suspend()
        ended = len(noticed.texts)
        eventually(lambda: len(noticed.texts) >= ended + 2)
        for child in found:
            child.resume()
        assert running.result().json()["choices"] == expected


def test_hanging_up_ends_the_work(guided: LiveServer) -> None:
    """Well before the time that it might take is over."""
    body = {"messages": HELLO, "guided_grammar": "start: /x+/{2,4}" + " " * 7}
    content = json.dumps(body).encode()
    host, port = guided.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {API_KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    before = set(of(guided))
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + content)
        (worker,) = eventually(lambda: set(of(guided)) - before)
        eventually(lambda: worker.cpu_times().user > 0.1, what="it is at work")
    assert psutil.wait_procs([worker], 30)[0]


def test_workers_inherit_no_secrets(guided: LiveServer) -> None:
    assert asked(guided, RECORD).status_code == 200
    assert chat(guided, messages=image_message(data_url(png(20, 10)))).status_code == 200
    seen = 0
    for process in psutil.Process(guided.process.pid).children(recursive=True):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
            assert API_KEY.encode() not in environment
            assert SECRET.encode() not in environment
            seen += 1
    assert seen >= 4  # two zygotes, one worker of each at least


def test_workers_are_confined(guided: LiveServer) -> None:
    for worker in of(guided):
        status = Path(f"/proc/{worker.pid}/status").read_text()
        assert re.search(r"NoNewPrivs:\s+1", status)
        assert worker.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert 0 < worker.rlimit(psutil.RLIMIT_AS)[0] < 16 << 30


@pytest.mark.slow
def test_many_grammars_take_bounded_memory(guided: LiveServer) -> None:
    """Those not asked for lately are forgotten."""
    for number in range(64):
        response = chat(guided, "/v1/chat/completions", guided_regex=f"a{{{100_000 - number}}}")
        assert response.status_code in (200, 422)
    assert len(of(guided)) < 70
    own = sum(worker.memory_full_info().uss for worker in of(guided))
    assert own < 512 * MIB


def test_a_grammar_is_compiled_once(guided: LiveServer) -> None:
    """Also when many ask for it at once."""
    before = set(of(guided))
    schema = {"enum": ["one", "two", "three"]}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: asked(guided, schema, seed=seed), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(set(of(guided)) - before) == 1


@pytest.mark.slow
def test_callers_share_no_grammars_when_caches_are_isolated(tiny: Path) -> None:
    keys = 'alice = "key-of-alice"\nbob = "key-of-bob"'
    flags = ("--model", str(tiny), "--dtype", "float32", "--isolate-caches")
    live = start_server(*flags, PHI3V_API_KEYS=keys)
    try:
        counts = []
        for name in ("alice", "alice", "bob", "bob"):
            headers = {"Authorization": f"Bearer key-of-{name}"}
            wanted = {"type": "json_object"}
            assert chat(live, headers=headers, response_format=wanted).status_code == 200
            zygotes = psutil.Process(live.process.pid).children()
            counts.append(sum(len(zygote.children()) for zygote in zygotes))
        assert counts[0] == counts[1] < counts[2] == counts[3]
    finally:
        assert live.stop() == 0
    check_log("".join(live.log))
