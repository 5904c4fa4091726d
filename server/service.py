"""The engine and its state: loading, ready, draining or dead.

The server listens before the model is loaded, so that ``/health`` can report the state.
"""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from typing import Literal

import model
from server.auth.access import Access
from server.errors import ApiError, too_many_requests, unavailable
from server.images.decode_pool import DecodePool
from server.images.fetching import Fetcher
from server.settings import ModelSettings, Settings

State = Literal["loading", "ready", "draining", "dead"]


class Backend:
    """The engine and its state. ``load`` starts the engine.

    Attributes:
        decode_pool: decodes images.
        fetcher: fetches remote images.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.decode_pool = DecodePool(settings.max_image_pixels, settings.image_timeout)
        self.fetcher = Fetcher(
            settings.allow_image_hosts, settings.max_body_bytes, settings.image_timeout
        )
        self._engine: model.AsyncEngine | None = None
        self._info: model.ModelInfo | None = None
        self._draining = False

    async def load(self) -> None:
        """Load the model; raises model.CheckpointError."""
        settings = self.settings
        await asyncio.to_thread(self.decode_pool.start)
        self._engine, self._info = await model.load_engine(
            model.LoadOptions(
                **{field.name: getattr(settings, field.name) for field in fields(model.LoadOptions)}
            )
        )
        self.decode_pool.longest_ratio = self._engine.longest_ratio

    @property
    def state(self) -> State:
        """The current state."""
        if self._engine is None:
            return "loading"
        if not self._engine.is_alive:
            return "dead"
        return "draining" if self._draining else "ready"

    @property
    def engine(self) -> model.AsyncEngine:
        """The engine, for a new request; raises a 503 ApiError if it is not ready."""
        if self._engine is None or self.state != "ready":
            raise self._unavailable()
        return self._engine

    @property
    def info(self) -> model.ModelInfo:
        """Name, provider and adapter of the model; raises a 503 ApiError until it is loaded."""
        if self._info is None:
            raise self._unavailable()
        name = self.settings.served_model_name or self._info.name
        return replace(self._info, name=name)

    @property
    def max_model_len(self) -> int:
        """Maximum length of prompt plus answer, in tokens; raises a 503 ApiError until it is loaded."""
        if self._engine is None:
            raise self._unavailable()
        return self._engine.max_model_len

    def stats(self) -> model.Stats | None:
        """The engine's statistics; None until it is loaded."""
        return None if self._engine is None else self._engine.stats()

    def _unavailable(self) -> ApiError:
        reason = {
            "loading": "the model is still loading",
            "draining": "the server is shutting down",
            "dead": "the engine has failed; the server must be restarted",
        }[self.state]
        return unavailable(reason)

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._draining = True

    @property
    def busy(self) -> bool:
        """Whether requests are in flight."""
        return self._engine is not None and self._engine.is_busy

    def close(self) -> None:
        """Shut down the engine and the decode pool."""
        if self._engine is not None:
            self._engine.shutdown()  # first, because its threads use the pool
        self.decode_pool.close()


class Service(Backend):
    """A backend with authentication and limits per caller.

    Attributes:
        access: authenticates callers.

    Raises:
        KeysError: the configured keys are invalid.
    """

    settings: Settings

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.access = Access(settings)
        self._held = 0  # bytes of request bodies

    def cache_salt(self, caller: str, salt: str | None) -> str:
        """The cache salt: only requests with the same salt share cached prefixes."""
        own = f"{caller}\n" if self.settings.isolate_caches else ""
        return own + (salt or "")

    def hold(self, size: int) -> None:
        """Count ``size`` bytes of a body as held, until ``release``; raises a 429 ApiError at the limit."""
        limit = int(self.settings.max_bodies_mb * 1e6)
        if self._held and self._held + size > limit:
            raise too_many_requests(
                f"other requests use the {limit} bytes available for request bodies (--max-bodies-mb); "
                "try again in a moment"
            )
        self._held += size

    def release(self, size: int) -> None:
        """Stop counting ``size`` bytes as held."""
        self._held -= size
