"""Ray routers that send requests to a gateway or replica with a free slot.

Ray's own routers count a request only when it is sent, so simultaneous requests would all go to the
same process.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from server.ray.affinity import pin_of

# Slots of a replica beyond those for POST requests: for requests without a session (health, metrics, the
# page), and for the few excess requests of concurrent gateways.
SPARE = 8


class CountingRouter(RequestRouter):
    """Counts a request as soon as it chooses a process."""

    # Seconds for a busy process to reply; slower ones count as full.
    queue_len_response_deadline_s = 1.0
    max_num_routing_tasks_cap = 1000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._probes: dict[ReplicaID, asyncio.Task[Any]] = {}

    @property
    def max_num_routing_tasks(self) -> int:
        """Concurrent routing tasks: enough for all requests, so that none waits behind another."""
        return self.max_num_routing_tasks_cap

    async def take_slot(
        self, replicas: list[RunningReplica], spare: int = 0
    ) -> list[RunningReplica]:
        """Take a slot at the process with the fewest requests.

        Args:
            replicas: processes to choose from.
            spare: slots that must stay free in each.

        Returns:
            a list of the chosen process; empty if all are full.
        """
        for replica in replicas:
            if self.replica_queue_len_cache.get(replica.replica_id) is None:
                self._probe(replica)  # wait for the reply only if no other process is free
        chosen = self._freest(replicas, spare)
        if not chosen:
            await asyncio.wait([self._probe(replica) for replica in replicas])
            chosen = self._freest(replicas, spare)
        for replica in chosen:
            # Ray counts it again later; the next reply corrects the number.
            self.on_send_request(replica.replica_id)
        return chosen

    def _freest(self, replicas: list[RunningReplica], spare: int) -> list[RunningReplica]:
        free = []
        for replica in replicas:
            ongoing = self.replica_queue_len_cache.get(replica.replica_id)
            if ongoing is not None and ongoing < replica.max_ongoing_requests - spare:
                free.append((ongoing, replica))
        return [min(free, key=lambda pair: pair[0])[1]] if free else []

    def _probe(self, replica: RunningReplica) -> asyncio.Task[Any]:
        """Ask a process how many requests it has; concurrent callers share the reply."""
        key = replica.replica_id
        if key not in self._probes:
            probe = self._event_loop.create_task(self._probe_queue_lens([replica], 0))
            self._probes[key] = probe
            probe.add_done_callback(lambda _: self._forget(key))
        return self._probes[key]

    def _forget(self, key: ReplicaID) -> None:
        """Allow the next probe: at once, or after a pause if there was no reply."""
        known = self.replica_queue_len_cache.get(key) is not None
        pause = 0 if known else self.queue_len_response_deadline_s
        self._event_loop.call_later(pause, self._probes.pop, key)


class GatewayRouter(CountingRouter):
    """Sends a request to the gateway with the fewest requests."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Choose a gateway; if all are full, Ray retries."""
        gateways = random.sample(candidate_replicas, len(candidate_replicas))
        if pending_request is None or pending_request.future.done():
            return [gateways]
        pending_request.routing_context.should_backoff = True
        return [await self.take_slot(gateways)]


class ReplicaRouter(CountingRouter, ConsistentHashRouter):
    """Sends requests of a session to the same replica while it has a free slot.

    Those of a pinned session wait for their replica, and only if it is gone do they go to another one, which
    responds that it does not store what they name. Requests without a session, such as health probes, have
    separate slots.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Choose a replica; if all are full, Ray retries at least twice a second."""
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        if pending_request is None or pending_request.future.done():
            return ranks
        session = pending_request.metadata.session_id
        spare = SPARE if session else 0
        pin = pin_of(session or "")
        if pin is not None:
            spare = SPARE if pin.takes_slot else 0
            wanted = [r for r in candidate_replicas if r.replica_id.unique_id == pin.replica]
            ranks = [wanted] if wanted else ranks
        for replicas in ranks:
            chosen = await self.take_slot(replicas, spare)
            if chosen:
                return [chosen]
        return []
