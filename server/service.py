"""The model as the server sees it: loading, ready, draining or dead.

The server listens before the model is loaded, so that ``/health`` can say what it is doing.
"""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import Literal

import model
from server.auth.access import Access
from server.errors import RETRY_AFTER, ApiError
from server.images.decode_pool import Decoder
from server.images.fetching import Fetcher
from server.settings import ModelSettings, Settings

State = Literal["loading", "ready", "draining", "dead"]


class Backend:
    """The engine and its state. Made before the engine, which ``load`` brings.

    Attributes:
        decoder: of images.
        fetcher: of images elsewhere.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.decoder = Decoder(settings.max_image_pixels, settings.image_timeout)
        self.fetcher = Fetcher(
            settings.allow_image_hosts, settings.max_body_bytes, settings.image_timeout
        )
        self._engine: model.AsyncEngine | None = None
        self._info: model.ModelInfo | None = None
        self._draining = False

    async def load(self) -> None:
        """Load the model; raises model.CheckpointError."""
        settings = self.settings
        await asyncio.to_thread(self.decoder.start)
        self._engine, self._info = await model.load_engine(
            model.LoadOptions(
                **{field.name: getattr(settings, field.name) for field in fields(model.LoadOptions)}
            )
        )
        self.decoder.longest_ratio = self._engine.longest_ratio

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
        return ApiError(503, "overloaded", reason, headers=RETRY_AFTER)

    def drain(self) -> None:
        """Take no new requests."""
        self._draining = True

    @property
    def busy(self) -> bool:
        """Whether answers are in the making."""
        return self._engine is not None and self._engine.is_busy

    def close(self) -> None:
        """End the engine, and the decoder of images."""
        if self._engine is not None:
            self._engine.shutdown()  # whose threads use the decoder
        self.decoder.close()


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
        """Who shares what is computed of a prompt: all with the same salt, of one caller if so set."""
        own = f"{caller}\n" if self.settings.isolate_caches else ""
        return own + (salt or "")

    def hold(self, size: int) -> None:
        """Take note of ``size`` bytes of a body; raises a 429 ApiError when they are too many.

        Those that are held are given back with ``release``.
        """
        limit = int(self.settings.max_bodies_mb * 1e6)
        if self._held and self._held + size > limit:
            raise ApiError(
                429,
                "too_many_requests",
                f"the bodies of other requests fill the {limit} bytes that there are for them here; "
                "try again in a moment",
                headers=RETRY_AFTER,
            )
        self._held += size

    def release(self, size: int) -> None:
        """Let go of ``size`` bytes that were held."""
        self._held -= size
