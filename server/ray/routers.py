"""Which gateway takes a request, and which replica: one with a free seat.

Ray counts a request when it is sent, so that all of one moment would go to the same process.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

# Seats of a replica for what is no POST: health, metrics, the page; and for a few requests that
# several gateways, or one in one moment, hand out beyond its others.
SPARE = 8


class Counting(RequestRouter):
    """Counts a request as soon as a process is chosen for it."""

    # Seconds for a process that computes; one that takes longer looks full.
    queue_len_response_deadline_s = 1.0
    max_num_routing_tasks_cap = 1000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._probes: dict[ReplicaID, asyncio.Task[Any]] = {}

    @property
    def max_num_routing_tasks(self) -> int:
        """Requests that look for a seat at a time: all, so that none waits behind another."""
        return self.max_num_routing_tasks_cap

    async def take_seat(
        self, replicas: list[RunningReplica], spare: int = 0
    ) -> list[RunningReplica]:
        """Take one at the process with the fewest requests.

        Args:
            replicas: processes to choose from.
            spare: seats of each that are not to be taken.

        Returns:
            the process alone; none where all are full.
        """
        for replica in replicas:
            if self.replica_queue_len_cache.get(replica.replica_id) is None:
                self._probe(replica)  # and wait for it only where no other is free
        if not (chosen := self._freest(replicas, spare)):
            await asyncio.wait([self._probe(replica) for replica in replicas])
            chosen = self._freest(replicas, spare)
        for replica in chosen:
            self.on_send_request(
                replica.replica_id
            )  # so does Ray later; the reply says what is true
        return chosen

    def _freest(self, replicas: list[RunningReplica], spare: int) -> list[RunningReplica]:
        free = []
        for replica in replicas:
            ongoing = self.replica_queue_len_cache.get(replica.replica_id)
            if ongoing is not None and ongoing < replica.max_ongoing_requests - spare:
                free.append((ongoing, replica))
        return [min(free, key=lambda pair: pair[0])[1]] if free else []

    def _probe(self, replica: RunningReplica) -> asyncio.Task[Any]:
        """Ask a process how many requests it has. All who want to know wait for the same reply."""
        key = replica.replica_id
        if key not in self._probes:
            probe = self._event_loop.create_task(self._probe_queue_lens([replica], 0))
            self._probes[key] = probe
            probe.add_done_callback(lambda _: self._forget(key))
        return self._probes[key]

    def _forget(self, key: ReplicaID) -> None:
        """Where there was no reply, do not ask again at once: nobody need wait for that."""
        known = self.replica_queue_len_cache.get(key) is not None
        pause = 0 if known else self.queue_len_response_deadline_s
        self._event_loop.call_later(pause, self._probes.pop, key)


class ToGateways(Counting):
    """Sends a request to the gateway that has the fewest."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The gateway to send it to; where all are full, Ray asks again."""
        gateways = random.sample(candidate_replicas, len(candidate_replicas))
        if pending_request is None or pending_request.future.done():
            return [gateways]
        pending_request.routing_context.should_backoff = True
        return [await self.take_seat(gateways)]


class ToReplicas(Counting, ConsistentHashRouter):
    """Sends requests of one session to the same replica, while that has a seat.

    Those without a session ask how the server is, and have seats of their own.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replica to send it to; where all are full, Ray asks again, at least twice a second."""
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        if pending_request is None or pending_request.future.done():
            return ranks
        spare = SPARE if pending_request.metadata.session_id else 0
        for replicas in ranks:
            if chosen := await self.take_seat(replicas, spare):
                return [chosen]
        return []
