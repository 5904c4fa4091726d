"""The choice of a process for a request, by Ray's own router with processes that are no actors."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's, of its own old ways
    # Routers are made with these, and Ray has no public names for them.
    from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID

    from server.ray.routers import GatewayRouter

SLOTS = 16
DEPLOYMENT = DeploymentID("gateway", "default")


class Process:
    """As Ray's router knows a process; a silent one never says how many requests it has."""

    max_ongoing_requests = SLOTS

    def __init__(self, name: str, ongoing: int | None) -> None:
        self.replica_id = ReplicaID(name, DEPLOYMENT)
        self.ongoing = ongoing
        self.asked = 0

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.asked += 1
        await asyncio.sleep(0.01)
        if self.ongoing is None:
            await asyncio.Event().wait()
        return self.ongoing or 0


def make_router() -> GatewayRouter:
    return GatewayRouter(
        deployment_id=DEPLOYMENT,
        handle_source=DeploymentHandleSource.PROXY,
        use_replica_queue_len_cache=True,
    )


async def choose(router: GatewayRouter, processes: list[Process], count: int) -> list[Any]:
    """The processes chosen for that many requests at once."""
    chosen = await asyncio.gather(*(router.take_slot([*processes]) for _ in range(count)))  # type: ignore[list-item]
    return [process for each in chosen for process in each]


def test_a_silent_process_is_in_nobodys_way() -> None:
    async def run() -> None:
        router = make_router()
        good, silent = Process("good", 0), Process("silent", None)
        assert {p.replica_id.unique_id for p in await choose(router, [silent, good], 10)} <= {
            "good"
        }
        # Once it is known that one is free, nobody waits for the other.
        assert await choose(router, [silent, good], 5) == [good] * 5
        assert silent.asked == 1

    asyncio.run(run())


def test_all_who_wait_share_one_question() -> None:
    async def run() -> None:
        router = make_router()
        full = Process("full", SLOTS)
        assert await choose(router, [full], 20) == []
        assert full.asked == 1
        full.ongoing = SLOTS - 3
        chosen: list[Process] = []
        while not chosen:  # the first answer is known for a moment
            chosen = await choose(router, [full], 20)
        assert chosen == [full] * 3
        assert full.asked == 2

    asyncio.run(run())


def test_a_burst_spreads() -> None:
    async def run() -> None:
        router = make_router()
        processes = [Process(name, 0) for name in "abc"]
        chosen = await choose(router, processes, 30)
        assert [chosen.count(process) for process in processes] == [10, 10, 10]

    asyncio.run(run())
