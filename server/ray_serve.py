"""The same application on many devices or machines: ``serve run server.ray_serve:app``.

A gateway takes requests from Ray's HTTP proxy and hands each to a replica: the same one for
conversations that begin alike, where their beginning is cached. A replica is the whole server but
for its sockets.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

import model
from server import logs
from server.affinity import affinity
from server.app import create_app
from server.dependencies import PARSE_ON_THREAD_ABOVE, Held, read_body
from server.errors import (
    CLIENT_CLOSED,
    RETRY_AFTER,
    ApiError,
    error_body,
    error_response,
    from_model_error,
)
from server.ray_settings import RaySettings
from server.service import Service
from server.sse import StreamBrokenError

logger = logging.getLogger(__name__)

# Of a request's scope; the rest does not travel between processes.
PASSED_ON = {
    *("type", "http_version", "method", "scheme", "path", "raw_path", "query_string"),
    *("root_path", "headers", "client", "server"),
}
LOST = ApiError(
    503, "overloaded", "the replica at work on this has ended; try again", headers=RETRY_AFTER
)


class Gateway:
    """Hands requests to replicas. Refuses those that are too large, too slow or too many."""

    def __init__(self, settings: RaySettings, replicas: DeploymentHandle[Replica]) -> None:
        logs.start(settings.log_format, settings.log_level)
        self._settings = settings
        self._service = Service(settings)  # for its bounds; nothing is loaded here
        self._replicas = replicas.options(method_name="answer", stream=True)

    async def __call__(self, request: Request) -> Response:
        """The answer of a replica, as soon as it begins."""
        held = Held(self._service)
        try:
            return await self._forward(request, await self._read(request, held))
        except ApiError as error:
            return error_response(error)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED)
        finally:
            self._service.release(held.size)

    async def _read(self, request: Request, held: Held) -> bytes:
        seconds = self._settings.body_timeout
        try:
            async with asyncio.timeout(seconds):
                return await read_body(request, self._settings.max_body_bytes, held)
        except TimeoutError as error:
            reason = f"the request's body took longer than {seconds:g} seconds, the limit here"
            raise ApiError(408, "request_timeout", f"{reason}; send it at once") from error

    async def _forward(self, request: Request, body: bytes) -> Response:
        if len(body) > PARSE_ON_THREAD_ABOVE:
            key = await asyncio.to_thread(affinity, body)
        else:
            key = affinity(body)
        scope = {name: value for name, value in request.scope.items() if name in PASSED_ON}
        batches = self._replicas.options(session_id=key).remote(scope, body)
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                first = await anext(batches)
        except BackPressureError as error:
            raise ApiError(
                429,
                "too_many_requests",
                f"{self._settings.queued_requests} requests wait for a replica, the limit here; try "
                "again in a moment",
                headers=RETRY_AFTER,
            ) from error
        except TimeoutError as error:
            batches.cancel()
            limit = f"{self._settings.request_timeout:g} seconds, the limit here"
            reason = f"the answer took longer than {limit}; try again when less is asked"
            raise from_model_error(model.TookTooLongError(reason)) from error
        except (RayActorError, DeploymentUnavailableError) as error:
            raise LOST from error
        return Relayed(first, batches)


class Relayed(Response):
    """A response that a replica makes: ``first`` of its messages, and the others in batches."""

    def __init__(self, first: list[Message], batches: AsyncIterator[list[Message]]) -> None:
        super().__init__()
        self._first = first
        self._batches = batches

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it on; break it off where the replica ends before it does."""
        start = self._first[0]
        headers = MutableHeaders(raw=start["headers"])
        del headers["x-request-id"]  # Ray's proxy adds the same
        start["headers"] = headers.raw
        for message in self._first:
            await send(message)
        try:
            async for batch in self._batches:
                for message in batch:
                    await send(message)
        except RayActorError as error:
            if headers.get("content-type", "").startswith("text/event-stream"):
                event = f"data: {json.dumps(error_body(LOST))}\n\n".encode()
                await send({"type": "http.response.body", "body": event, "more_body": True})
            raise StreamBrokenError(LOST.message) from error


class Replica:
    """The application and its engine. A dead engine makes Ray start another replica."""

    async def __init__(self, settings: RaySettings) -> None:
        logs.start(settings.log_format, settings.log_level)
        self._service = Service(settings)
        self._app = create_app(self._service)
        await self._service.load()
        never = asyncio.Event()
        self._following = asyncio.create_task(self._service.access.follow_changes(never))

    async def answer(self, scope: Scope, body: bytes) -> AsyncGenerator[list[Message], None]:
        """The application's messages for a request, those at once that are there at once."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        unread = [body]

        async def receive() -> Message:
            if not unread:
                await asyncio.Event().wait()  # a client that goes away cancels all of this
            return {"type": "http.request", "body": unread.pop(), "more_body": False}

        answering = asyncio.ensure_future(self._app(scope, receive, messages.put))
        answering.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                batch = [message]
                while not messages.empty() and (message := messages.get_nowait()) is not None:
                    batch.append(message)
                yield batch
                if message is None:
                    break
            await answering
        except StreamBrokenError:
            raise
        except Exception as error:  # its words may be of a request, and are for our log alone
            logger.exception("a request failed")
            raise StreamBrokenError(type(error).__name__) from None
        finally:
            answering.cancel()

    async def check_health(self) -> None:
        """Called by Ray now and then; raises RuntimeError when the engine is dead."""
        if self._service.state == "dead":
            raise RuntimeError("the engine has failed")

    def __del__(self) -> None:
        self._following.cancel()
        self._service.close()


def app(args: dict[str, Any]) -> serve.Application:
    """The application, of ``PHI3V_*`` variables and arguments, which win; raises ValueError."""
    settings = RaySettings(**args)
    shared = {
        "graceful_shutdown_timeout_s": settings.drain_timeout,
        "graceful_shutdown_wait_loop_s": 1.0,
        "logging_config": {"enable_access_log": False},  # a replica logs each request
    }
    replicas = serve.deployment(
        Replica,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.most_replicas,
            target_ongoing_requests=0.75 * settings.ongoing,
        ),
        max_ongoing_requests=settings.ongoing,
        max_surge_percent=settings.max_surge_percent,
        max_queued_requests=settings.queued_requests,
        request_router_config=RequestRouterConfig(
            request_router_class=ConsistentHashRouter,
            # Better on a replica that has to compute the beginning than not at all.
            request_router_kwargs={"num_fallback_replicas": settings.most_replicas - 1},
        ),
        **shared,
    )
    at_most = settings.most_replicas * settings.ongoing + settings.queued_requests
    gateway = serve.deployment(
        Gateway,
        num_replicas=settings.gateways,
        max_surge_percent=100,  # a new one takes requests while the old one finishes its streams
        # More than the replicas take, so that it is a gateway that refuses, in the API's words.
        max_ongoing_requests=at_most + settings.max_connections,
        max_queued_requests=settings.max_connections,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        **shared,
    )
    return gateway.bind(settings, replicas.bind(settings))
