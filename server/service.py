"""The model as the server sees it: loading, ready, draining or dead.

The server listens before the model is loaded, so that ``/health`` can say what it is doing.
"""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import Literal

import model
from server.auth.access import Access
from server.errors import ApiError, too_many_requests, unavailable
from server.images.decode_pool import DecodePool
from server.images.fetching import Fetcher
from server.settings import ModelSettings, Settings

State = Literal["loading", "ready", "draining", "dead"]


class Backend:
    """The engine and its state. Exists before the engine, which ``load`` starts.

    Attributes:
        decode_pool: decodes images.
        fetcher: fetches images that are elsewhere.
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
        """What the service is doing."""
        if self._engine is None:
            return "loading"
        if not self._engine.is_alive:
            return "dead"
        return "draining" if self._draining else "ready"

    @property
    def engine(self) -> model.AsyncEngine:
        """The engine, for a new request; raises a 503 ApiError when it takes none."""
        if self._engine is None or self.state != "ready":
            raise self._unavailable()
        return self._engine

    @property
    def info(self) -> model.ModelInfo:
        """Name and provider of the model; raises a 503 ApiError before it is loaded."""
        if self._info is None:
            raise self._unavailable()
        name = self.settings.served_model_name or self._info.name
        return model.ModelInfo(name, self._info.provider)

    def stats(self) -> model.Stats | None:
        """What the engine is doing; None before it is loaded."""
        return None if self._engine is None else self._engine.stats()

    def _unavailable(self) -> ApiError:
        reason = {
            "loading": "the model is still loading",
            "draining": "the server is shutting down",
            "dead": "the engine has failed; the server must be restarted",
        }[self.state]
        return unavailable(reason)

    def drain(self) -> None:
        """Take no new requests."""
        self._draining = True

    @property
    def busy(self) -> bool:
        """Whether requests are in flight."""
        return self._engine is not None and self._engine.is_busy

    def close(self) -> None:
        """End the engine and the pool that decodes images."""
        if self._engine is not None:
            self._engine.shutdown()  # whose threads use the pool
        self.decode_pool.close()


class Service(Backend):
    """A backend for many callers, each with a key, limits and bodies of its own.

    Attributes:
        access: who may use it.

    Raises:
        KeysError: the settings' keys cannot be used.
    """

    settings: Settings

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.access = Access(settings)
        self._held = 0  # bytes of bodies

    def cache_salt(self, caller: str, salt: str | None) -> str:
        """The salt of cached prefixes, which only requests with the same one share."""
        own = f"{caller}\n" if self.settings.isolate_caches else ""
        return own + (salt or "")

    def hold(self, size: int) -> None:
        """Count ``size`` bytes of a body as held; raises a 429 ApiError when there are too many.

        They are given back with ``release``.
        """
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
