"""The application as a Ray Serve deployment: ``serve run server.ray_serve:app``.

A gateway receives requests from Ray's HTTP proxy and routes each to a replica. Conversations that begin
alike go to the same replica, where their prefix is cached. A replica is a whole server without sockets.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

import model
from server.app import create_app, outer_middleware
from server.chat.bodies import PARSE_ON_THREAD_ABOVE
from server.errors import (
    CLIENT_CLOSED,
    ApiError,
    error_response,
    from_model_error,
    too_slow,
    unavailable,
)
from server.http.dependencies import HeldBytes, read_body, require_caller
from server.http.exchange import exchange_of
from server.ray import relay
from server.ray.affinity import affinity, path_session
from server.ray.replica_slots import ReplicaSlots
from server.ray.routers import SPARE, GatewayRouter, ReplicaRouter
from server.ray.settings import RaySettings
from server.service import Service
from server.telemetry import logs
from server.telemetry.traces import open_traces


class Gateway:
    """Routes requests to replicas; authenticates callers and enforces limits on size, time and number."""

    async def __init__(  # type: ignore[misc] # Ray awaits it
        self, settings: RaySettings, replicas: DeploymentHandle[Replica]
    ) -> None:
        logs.start(settings.log_format, settings.log_level)
        self._settings = settings
        self._service = Service(settings)  # only for its keys and limits; loads no model
        self._requests = 0
        self._slots = ReplicaSlots(settings.replica_slots, settings.queued_requests)
        # Ray's types do not express the effect of ``stream``.
        self._replicas: Any = replicas.options(method_name="answer", stream=True)
        self._app: ASGIApp = self._handle
        for outer in outer_middleware(settings, lambda route, status: None):
            self._app = outer.cls(self._app, *outer.args, **outer.kwargs)
        self._following = asyncio.create_task(self._service.access.follow_changes(asyncio.Event()))

    async def __call__(self, _: Request) -> Response:
        """Return the response."""
        return relay.AppResponse(self._app, without="x-request-id")  # Ray's proxy adds it itself

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._settings.requests_in_gateway
        if self._requests == limit:
            reason = (
                f"too many requests in the gateway; the limit is {limit}; try again in a moment"
            )
            refused = error_response(unavailable(reason))
            await refused(scope, receive, send)
            return
        self._requests += 1
        try:
            response = await self._response(Request(scope, receive))
            await response(scope, receive, send)
        finally:
            self._requests -= 1

    async def _response(self, request: Request) -> Response:
        held = HeldBytes(self._service)
        try:
            return await self._forward(request, held)
        except ApiError as error:
            exchange_of(request.scope).relayed = False
            return error_response(error)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED)
        finally:
            self._service.release(held.size)

    async def _forward(self, request: Request, held: HeldBytes) -> Response:
        body, key = b"", path_session(request.url.path)
        if request.method == "POST":  # other methods have no body
            await require_caller(request, self._service)
            body = await self._read(request, held)
            at_once = len(body) <= PARSE_ON_THREAD_ABOVE
            if not key:
                key = affinity(body) if at_once else await asyncio.to_thread(affinity, body)
            key = key or uuid.uuid4().hex
        seconds = self._settings.request_timeout
        batches = self._ask(key, request, body)
        try:
            async with asyncio.timeout(seconds):
                first = await anext(batches)
        except TimeoutError as error:
            raise from_model_error(model.TookTooLongError(seconds)) from error
        return relay.RelayedResponse(first, batches)

    async def _read(self, request: Request, held: HeldBytes) -> bytes:
        seconds = self._settings.body_timeout
        try:
            async with asyncio.timeout(seconds):
                return bytes(await read_body(request, self._settings.max_body_bytes, held))
        except TimeoutError as error:
            raise too_slow("body", seconds) from error

    async def _ask(
        self, key: str, request: Request, body: bytes
    ) -> AsyncGenerator[relay.MessageBatch, None]:
        """Yield a replica's response; raises ApiError."""
        takes_slot = request.method == "POST"
        async with self._slots.acquire() if takes_slot else nullcontext():
            replica = self._replicas.options(session_id=key)
            response = replica.remote(relay.portable(request.scope), body)
            del body  # its bytes count as held until the response starts
            exchange_of(request.scope).relayed = True
            try:
                async for batch in response:
                    yield batch
            except (RayActorError, DeploymentUnavailableError) as error:
                reason = "the replica that handled the request has stopped; try again"
                raise unavailable(reason) from error
            except (asyncio.CancelledError, GeneratorExit):
                response.cancel()
                raise

    def __del__(self) -> None:
        self._following.cancel()


class Replica:
    """The application and its engine. If the engine dies, Ray starts another replica."""

    async def __init__(self, settings: RaySettings) -> None:  # type: ignore[misc] # Ray awaits it
        logs.start(settings.log_format, settings.log_level)
        if not settings.gpus:  # Ray does not hide the GPUs from such replicas
            settings = settings.model_copy(update={"device": "cpu"})
        self._service = Service(settings)
        self._traces = open_traces(settings.otlp_endpoint)
        replica = serve.get_replica_context().replica_id.unique_id
        # The gateways face browsers.
        self._app = create_app(self._service, self._traces, faces_browsers=False, replica=replica)
        never = asyncio.Event()
        self._following = asyncio.create_task(self._service.access.follow_changes(never))
        await self._service.load()

    async def answer(self, scope: Scope, body: bytes) -> AsyncGenerator[relay.MessageBatch, None]:
        """Yield the application's response to a request."""
        async with aclosing(relay.message_batches(self._app, scope, body)) as batches:
            async for batch in batches:
                yield batch

    async def check_health(self) -> None:
        """Called periodically by Ray; raises RuntimeError if the engine is dead."""
        if self._service.state == "dead":
            raise RuntimeError("the engine has failed")

    def __del__(self) -> None:
        self._following.cancel()
        self._service.close()
        if self._traces is not None:
            self._traces.close()


def app(args: dict[str, Any]) -> serve.Application:
    """Build the application. Arguments override ``PHI3V_*`` variables. Raises ValueError."""
    settings = RaySettings(**args)
    shared: dict[str, Any] = {
        "graceful_shutdown_timeout_s": settings.drain_timeout,
        "graceful_shutdown_wait_loop_s": 1.0,
        "logging_config": {"enable_access_log": False},  # replicas log requests themselves
    }
    replicas = serve.deployment(
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.most_replicas,
            target_ongoing_requests=0.75 * settings.ongoing,
            upscale_delay_s=settings.upscale_delay,
            downscale_delay_s=settings.downscale_delay,
        ),
        max_ongoing_requests=settings.ongoing
        + SPARE,  # the gateways enforce the limit and the queue
        max_surge_percent=settings.max_surge_percent,
        request_router_config={
            "request_router_class": ReplicaRouter,
            # Fall back to any replica, even if it must compute the prefix again. During an update
            # there are twice as many.
            "request_router_kwargs": {"num_fallback_replicas": 2 * settings.most_replicas - 1},
        },
        **shared,
    )(Replica)
    gateways = serve.deployment(
        num_replicas=settings.gateways,
        ray_actor_options={"num_cpus": 0},  # so that Ray can always place a new one
        request_router_config={"request_router_class": GatewayRouter},
        max_surge_percent=100,  # start a new one while the old one finishes its streams
        # More than a gateway accepts, so that the gateway refuses requests with the API's errors. The
        # queue also contains requests on their way to a gateway.
        max_ongoing_requests=2 * settings.requests_in_gateway,
        max_queued_requests=2 * settings.requests_in_gateway,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        **shared,
    )(Gateway)
    return gateways.bind(settings, replicas.bind(settings))
