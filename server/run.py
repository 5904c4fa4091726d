"""Runs the server: socket, event loop, signals and graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import resource
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn

import model
from server.app import create_app
from server.auth.keys import KeysError
from server.http.connections import bounded_protocol
from server.http.sse import is_not_a_broken_stream
from server.service import Service
from server.settings import Settings
from server.telemetry import logs
from server.telemetry.traces import TracesError, open_traces

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEAD_FOR = 2.0  # seconds for which a server with a dead engine still reports it in /health
TELL_FOR = 5  # seconds for its last responses to reach their clients

logger = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """Serve until a signal; returns the exit status."""
    log = logs.start(settings.log_format, settings.log_level)
    _allow_open_files()
    logging.getLogger("uvicorn.error").addFilter(is_not_a_broken_stream)
    try:
        return _run(settings)
    finally:
        log.finish()


def _allow_open_files() -> None:
    """Raise the soft limit of open files to the hard limit, for connections and confined processes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS has no number for "any"
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run(settings: Settings) -> int:
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        logs.complain(
            settings.log_format,
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}; "
            "choose another address with --host and --port",
        )
        return 1
    try:
        service = Service(settings)
        traces = open_traces(settings.otlp_endpoint)
    except (KeysError, TracesError) as error:
        listener.close()
        logs.complain(settings.log_format, str(error))
        return 1
    config = uvicorn.Config(
        create_app(service, traces),
        log_config=None,
        log_level="warning",
        access_log=False,
        http=bounded_protocol(settings),
        ws="none",  # even if a WebSocket library is installed
        timeout_keep_alive=settings.idle_timeout,
        timeout_graceful_shutdown=settings.drain_timeout,
        lifespan="off",
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
    with listener, contextlib.nullcontext() if traces is None else contextlib.closing(traces):
        try:
            config.load()
        except OSError as error:  # ssl.SSLError included
            logs.complain(
                settings.log_format,
                f"cannot load the certificate {settings.ssl_certfile}: {error}; --ssl-certfile and "
                "--ssl-keyfile expect PEM files",
            )
            return 1
        return asyncio.run(_serve(config, service, listener))


async def _serve(config: uvicorn.Config, service: Service, listener: socket.socket) -> int:
    """Listen at once and load the model in the background; exit if loading fails."""
    server = Server(config, service)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(service.load())
    following = asyncio.create_task(service.access.follow_changes(_hangups(service.settings)))
    await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
    status = 0
    if loading.done():
        try:
            loading.result()
        except Exception as error:
            logs.complain(service.settings.log_format, _load_failure(error))
            status = 1
            server.should_exit = True
        else:
            logs.say(
                service.settings.log_format,
                f"{service.info.name} is ready on {_url(config, listener)}",
            )
            if service.settings.needs_generated_key:
                file = service.settings.generated_key_file
                logs.say(service.settings.log_format, f"clients must send the key in {file}")
    await serving
    loading.cancel()
    following.cancel()
    service.close()
    return status or server.status


def _load_failure(error: Exception) -> str:
    """The message for an error while loading."""
    if isinstance(error, model.ModelError):
        return str(error)
    logger.debug("loading failed", exc_info=error)
    words = [type(error).__name__, *str(error).strip().splitlines()[:1]]
    return f"the model cannot be loaded: {': '.join(words)}; pass --log-level debug for a traceback"


def _hangups(settings: Settings) -> asyncio.Event:
    """An event that SIGHUP sets if there is a key file to reload; without one, SIGHUP ends the process."""
    hangup = asyncio.Event()
    if settings.api_keys_file is not None and hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    return hangup


class Server(uvicorn.Server):
    """uvicorn's server, which shuts down on a signal or when the engine dies.

    It listens until the last response has been sent, so that load balancers see in ``/health`` that it
    is draining, and new requests get a 503 instead of a refused connection.

    Attributes:
        status: exit status.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._end_by: float | None = None
        self.status = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. Overridden to bound the TLS handshake, which uvicorn lets take a minute."""
        config, loop = self.config, asyncio.get_running_loop()
        made: Any = config.http_protocol_class
        protocol = partial(
            made, config=config, server_state=self.server_state, app_state=self.lifespan.state
        )
        seconds = self._service.settings.header_timeout if config.ssl else None
        self.servers = [
            await loop.create_server(
                protocol,
                sock=listener,
                ssl=config.ssl,
                backlog=config.backlog,
                ssl_handshake_timeout=seconds,
            )
            for listener in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving. Overridden because uvicorn raises them again at the end."""
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: object) -> None:
        """First signal: finish requests in flight. Second: abort them."""
        if self._end_by is not None:
            self.force_exit = self.should_exit = True
            return
        self._end_by = time.monotonic() + self._service.settings.drain_timeout
        self._service.drain()

    def _end_dead(self) -> None:
        """Exit with status 1, so that a supervisor restarts the server; the engine cannot restart."""
        self.status = 1
        self._end_by = time.monotonic() + DEAD_FOR
        self.config.timeout_graceful_shutdown = TELL_FOR
        logs.complain(
            self._service.settings.log_format,
            "the engine has failed; exiting so that the server can be restarted; see the log for the cause",
        )

    async def on_tick(self, counter: int) -> bool:
        """Shut down when no request is in flight, or when the drain timeout has passed."""
        if self._service.state == "dead" and not self.status:
            self._end_dead()
        if self._end_by is not None:
            left = self._end_by - time.monotonic()
            if left <= 0 or not (self.status or self._service.busy):
                # uvicorn uses the remaining time to send the rest of the responses.
                if not self.status:
                    self.config.timeout_graceful_shutdown = max(0, math.ceil(left))
                self.should_exit = True
        return await super().on_tick(counter)


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def _url(config: uvicorn.Config, listener: socket.socket) -> str:
    scheme = "https" if config.is_ssl else "http"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
