"""Several callers' keys, from variables and a file that changes while answers stream."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import Request

from server.app import create_app
from server.auth.access import Access
from server.auth.keys import Keys, KeysError, generated_key
from server.auth.limits import Limits
from server.http.exchange import exchange_of
from server.service import Service
from server.settings import Settings
from tests.support.servers.live_server import LiveServer, check_log, start_server
from tests.support.servers.wire import HELLO, check_error
from tests.support.waiting import eventually

LIMITS = Limits(requests_per_minute=7)
FIRST = 'alice = "alice-key"\nbob = "bob-key"\n'
WITH_LIMITS = """
alice = "alice-key"
[bob]
key = "bob-key"
tokens-per-minute = 500
concurrent-requests = 2
"""
STAY = "keeping the previous 4 keys"


@pytest.fixture(scope="module")
def started(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveServer, Path]]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(FIRST)
    live = start_server(
        *("--model", str(tiny), "--api-keys-file", str(file)),
        PHI3V_API_KEY="the-key",
        PHI3V_API_KEYS='carol = "carol-key"',
    )
    yield live, file
    assert live.stop() == 0
    check_log("".join(live.log), [STAY])


@pytest.fixture
def live(started: tuple[LiveServer, Path], file: Path) -> LiveServer:
    """The server, which has read the first file again if a test has changed it."""
    live, _ = started
    becomes(live, "alice-key", 200)
    becomes(live, "dora-key", 401)
    check_log("".join(live.log), [STAY])
    live.log.clear()
    return live


@pytest.fixture
def file(started: tuple[LiveServer, Path]) -> Path:
    started[1].write_text(FIRST)
    return started[1]


def status(live: LiveServer, key: str) -> int:
    return httpx2.get(f"{live.url}/info", headers={"api-key": key}).status_code


def becomes(live: LiveServer, key: str, wanted: int) -> None:
    eventually(lambda: status(live, key) == wanted, what=f"{wanted} for {key}")


def test_keys_of_all_sources_in_both_headers(live: LiveServer) -> None:
    for key in ("the-key", "alice-key", "bob-key", "carol-key"):
        for name, value in (("api-key", key), ("Authorization", f"bearer {key}")):
            response = httpx2.get(f"{live.url}/info", headers={name: value})
            assert response.status_code == 200, name
    wrong: list[dict[str, str]] = [
        *({}, {"api-key": "alice-ke"}, {"api-key": ""}, {"Authorization": "alice-key"})
    ]
    for headers in wrong:
        refused = httpx2.get(f"{live.url}/info", headers=headers)
        body = check_error(refused, 401, "Unauthorized", [])
        assert body["error"]["type"] == "authentication_error"
        assert "API key is missing or wrong" in body["message"]
    odd = httpx2.get(f"{live.url}/info", headers={b"api-key": "clé".encode()})
    check_error(odd, 401, "Unauthorized", [])
    settings = httpx2.get(f"{live.url}/playground/settings.json").json()
    assert settings["api_key_required"]


def test_a_changed_file_is_read_while_an_answer_streams(live: LiveServer, file: Path) -> None:
    body: dict[str, Any] = {"messages": HELLO, "max_tokens": 2500, "stream": True}
    body |= {"ignore_eos": True, "top_k": 2}
    url, headers = f"{live.url}/v1/chat/completions", {"api-key": "alice-key"}
    with httpx2.stream("POST", url, json=body, headers=headers, timeout=120) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        new = file.with_suffix(".new")
        new.write_text('bob = "bob-key"\ndora = "dora-key"\n')
        new.replace(file)
        becomes(live, "dora-key", 200)
        assert status(live, "alice-key") == 401
        assert status(live, "bob-key") == status(live, "carol-key") == 200
        assert [line for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize("broken", ["", "alice", 'alice = "x y"', None])
def test_a_broken_file_keeps_the_keys_of_before(
    live: LiveServer, file: Path, broken: str | None
) -> None:
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    eventually(lambda: any(STAY in line for line in live.log))
    assert status(live, "alice-key") == 200
    file.write_text('dora = "dora-key"')
    becomes(live, "dora-key", 200)
    assert status(live, "alice-key") == 401
    assert "alice-key" not in "".join(live.log)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
def test_sighup_reads_the_file_that_looks_unchanged(live: LiveServer, file: Path) -> None:
    before = file.stat()
    with file.open("r+") as same:  # as long, and as old
        same.write('alice = "alice-KEY"')
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    live.process.send_signal(signal.SIGHUP)
    becomes(live, "alice-KEY", 200)
    assert status(live, "alice-key") == 401


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("alice", "is not valid TOML"),
        ("", "has no keys"),
        ('"a b" = "key"', "'a b' is not a valid caller name"),
        ('api-key = "other"', "'api-key' is not a valid caller name, or is taken"),
        ('alice = ""', "alice.key: String should match"),
        ('alice = "schlüssel"', "alice.key: String should match"),
        ("alice = 3", "alice"),
        ('alice = "one"\nbob = "one"', "bob and alice have the same key"),
        ('alice = "the-key"', "alice and api-key have the same key"),
        ("[alice]\nrequests-per-minute = 3", "alice.key: Field required"),
        ('[alice]\nkey = "one"\nrequests-per-minute = 0', "alice.requests-per-minute: "),
        ('[alice]\nkey = "one"\nrequests = 3', "alice.requests: Extra inputs"),
    ],
)
def test_what_a_text_must_be(text: str, complaint: str) -> None:
    with pytest.raises(KeysError) as raised:
        Keys("the-key", text, None, LIMITS)
    assert complaint in str(raised.value)
    assert str(raised.value).startswith("PHI3V_API_KEYS")
    assert "\n" not in str(raised.value)
    assert "schlüssel" not in str(raised.value)


def test_a_key_is_made_where_there_is_none(tiny: Path, tmp_path: Path) -> None:
    """As in a container, which others reach. It stays the same, and in no log."""
    file = tmp_path / "api-key"
    flags = ("--model", str(tiny), "--generated-key-file", str(file))
    made = ""
    for _ in range(2):
        live = start_server(*flags, "--host", "0.0.0.0", PHI3V_LOG_FORMAT="json")
        key = file.read_text("ascii").strip()
        assert key == (made or key)
        made = key
        assert len(made) > 40
        assert file.stat().st_mode & 0o777 == 0o600
        assert [status(live, sent) for sent in ("", "other", made)] == [401, 401, 200]
        assert live.stop() == 0
        assert f"clients must send the key in {file}" in "".join(live.log)
        assert made not in "".join(live.log)


def test_a_key_is_made_for_nobody_who_has_one_or_wants_none(tmp_path: Path) -> None:
    file = tmp_path / "api-key"
    assert Access(Settings(generated_key_file=file, insecure=True)).required is False
    assert Access(Settings(generated_key_file=file, api_key="mine")).required
    assert not file.exists()


@pytest.mark.parametrize("content", ["", "two words", "schlüssel", b"\xff"])
def test_a_generated_key_that_is_none(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "api-key"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(KeysError, match=str(file)):
        Access(Settings(generated_key_file=file))


def test_a_key_is_made_once_by_many(tmp_path: Path) -> None:
    file = tmp_path / "api-key"
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(generated_key, [file] * 64))
    assert keys == {file.read_text("ascii").strip()}
    assert list(tmp_path.iterdir()) == [file]


def test_a_key_that_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"cannot be created or read: .*No such file"):
        Access(Settings(generated_key_file=tmp_path / "missing" / "api-key"))


def test_limits_of_their_own_come_before_those_of_all() -> None:
    keys = Keys("the-key", WITH_LIMITS, None, LIMITS)
    alice, bob, other = (keys.find(f"{name}-key") for name in ("alice", "bob", "the"))
    assert alice is not None
    assert bob is not None
    assert other is not None
    assert (alice.name, alice.limits) == ("alice", LIMITS)
    assert (bob.name, bob.limits) == ("bob", Limits(7, 500, 2))
    assert other.limits == LIMITS


def test_a_key_is_found_among_thousands() -> None:
    text = "\n".join(f'caller-{i} = "key-{i:032}"' for i in range(5000))
    keys = Keys(None, text, None, LIMITS)
    found = keys.find(f"key-{4999:032}")
    assert found is not None
    assert found.name == "caller-4999"
    assert keys.find("key-of-nobody-that-is-here-at-all") is None


def test_the_caller_is_there_for_the_log() -> None:
    service = Service(Settings(_cli_parse_args=["--api-keys", WITH_LIMITS]))
    app = create_app(service)
    seen = []

    @app.middleware("http")
    async def note(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        seen.append(exchange_of(request.scope).caller)
        return response

    async def ask(key: str) -> int:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            response = await client.get("/metrics", headers={"api-key": key})
            return response.status_code

    assert [asyncio.run(ask(key)) for key in ("alice-key", "wrong")] == [200, 401]
    assert seen == ["alice", None]


def test_a_server_without_keys_lets_anybody_in() -> None:
    access = Access(Settings(_cli_parse_args=[]))
    assert not access.required
