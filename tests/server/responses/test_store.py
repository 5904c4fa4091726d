"""What is kept of responses: for whom, how much, and how long."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable

import pytest

from server.errors import ApiError
from server.responses.ids import item_id, place_of, response_id, response_of_item
from server.responses.store import OVERHEAD, ResponseStore, StoredResponse
from tests.support.waiting import eventually_async

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def stored(size: int = 100, previous: str | None = None) -> StoredResponse:
    own = response_id(uuid.uuid4().hex, "")
    return StoredResponse(own, previous, (b"{}",), b"[%s]" % (b"1" * (size - 2)), b"[2]")


def on_a_loop(test: Callable[[ResponseStore, Clock], None], memory: int = 1_000_000) -> None:
    async def run() -> None:
        clock = Clock()
        test(ResponseStore(memory, HOUR, clock=clock), clock)

    asyncio.run(run())


def is_there(store: ResponseStore, caller: str, response: StoredResponse) -> bool:
    with contextlib.suppress(ApiError):
        return store.get(caller, response.id) is response
    return False


def test_each_caller_has_its_own() -> None:
    def test(store: ResponseStore, clock: Clock) -> None:
        kept = stored()
        store.put("alice", kept)
        assert is_there(store, "alice", kept)
        assert not is_there(store, "bob", kept)
        with pytest.raises(ApiError) as foreign:
            store.delete("bob", kept.id)
        with pytest.raises(ApiError) as unknown:
            store.delete("bob", "resp_unknown")
        assert (foreign.value.status, foreign.value.code) == (404, "not_found")
        assert str(foreign.value).replace(kept.id, "ID") == str(unknown.value).replace(
            "resp_unknown", "ID"
        )
        store.delete("alice", kept.id)
        assert not is_there(store, "alice", kept)
        assert store.size == 0

    on_a_loop(test)


def test_what_is_used_stays() -> None:
    def test(store: ResponseStore, clock: Clock) -> None:
        used, unused = stored(), stored()
        store.put("alice", used)
        store.put("alice", unused)
        clock.now += HOUR - 1
        assert is_there(store, "alice", used)
        clock.now += 2
        assert not is_there(store, "alice", unused)
        assert is_there(store, "alice", used)
        clock.now += HOUR + 1
        store.drop_old()
        assert store.size == 0

    on_a_loop(test)


def test_nothing_stays_when_nobody_asks() -> None:
    async def run() -> None:
        store = ResponseStore(1_000_000, seconds=0.01)
        store.put("alice", stored())
        assert store.size
        await eventually_async(lambda: store.size == 0)

    asyncio.run(run())


def test_memory_is_bounded_and_the_oldest_goes() -> None:
    size = 10_000
    memory = 4 * (size + OVERHEAD + 1000)

    def test(store: ResponseStore, clock: Clock) -> None:
        kept = [stored(size) for _ in range(4)]
        for each in kept:
            store.put("alice", each)
        assert all(is_there(store, "alice", each) for each in kept)
        assert is_there(store, "alice", kept[0])
        store.put("alice", stored(size))
        assert store.size <= memory
        assert [is_there(store, "alice", each) for each in kept] == [True, False, True, True]
        store.put("alice", stored(memory))  # alone too large
        assert is_there(store, "alice", kept[0])

    on_a_loop(test, memory)


def test_who_stores_most_loses_first() -> None:
    size = 10_000

    def test(store: ResponseStore, clock: Clock) -> None:
        mine = stored(size)
        store.put("alice", mine)
        for _ in range(100):
            store.put("bob", stored(size))
        assert is_there(store, "alice", mine)

    on_a_loop(test, 4 * (size + OVERHEAD + 1000))


def test_conversations_are_found_whole_or_not_at_all() -> None:
    def test(store: ResponseStore, clock: Clock) -> None:
        chain = [stored()]
        for _ in range(9):
            chain.append(stored(previous=chain[-1].id))
        for each in chain:
            store.put("alice", each)
        last = chain[-1].id
        assert store.conversation("alice", last, 10_000, 10) == chain
        for bytes_, responses in ((10_000, 9), (1000, 10)):
            with pytest.raises(ApiError) as long:
                store.conversation("alice", last, bytes_, responses)
            assert long.value.status == 413
        store.delete("alice", chain[3].id)
        with pytest.raises(ApiError, match=f"{chain[3].id}.*{chain[4].id}") as broken:
            store.conversation("alice", last, 10_000, 10)
        assert (broken.value.status, broken.value.loc) == (404, ("previous_response_id",))
        with pytest.raises(ApiError) as foreign:
            store.conversation("bob", chain[0].id, 10_000, 10)
        assert foreign.value.code == "previous_response_not_found"

    on_a_loop(test)


def test_a_circle_ends() -> None:
    """None can come about, as each id is new; but nobody should wait if one did."""

    def test(store: ResponseStore, clock: Clock) -> None:
        own = response_id(uuid.uuid4().hex, "")
        store.put("alice", StoredResponse(own, own, (b"{}",), b"[1]", b"[2]"))
        with pytest.raises(ApiError):
            store.conversation("alice", own, 10_000, 100)

    on_a_loop(test)


def test_ids_name_their_response_and_its_place() -> None:
    for place in ("", "abC123xy"):
        own = response_id("0" * 32, place)
        assert place_of(own) == place
        for position in (0, "i17"):
            assert response_of_item(item_id(own, "msg", position)) == own
    for other in ("", "resp_1", "msg_1_2", "resp_" + "g" * 32, f"resp_{'0' * 32}/x"):
        assert place_of(other) == ""
        assert response_of_item(other) is None
