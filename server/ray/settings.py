"""Settings of a Ray Serve deployment: the server's, and the number and size of replicas."""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import SettingsConfigDict

from server.settings import Settings, unprotected

# A replica chooses max_num_seqs when it starts, but requests are routed before. On a CPU it chooses this;
# on a GPU a card of 80 GB holds about as many conversations with a picture.
ONGOING_CPU, ONGOING_GPU = 16, 64


class RaySettings(Settings):
    """The server's and Ray's settings, from arguments of ``serve run`` or ``PHI3V_*`` variables.

    Ray configures the address and TLS of its proxies.
    """

    model_config = SettingsConfigDict(extra="forbid")

    min_replicas: int = Field(1, ge=1, description="minimum number of replicas")
    max_replicas: int | None = Field(
        None, ge=1, description="maximum number of replicas; min_replicas by default"
    )
    upscale_delay: float = Field(
        30, ge=0, description="seconds of high load before replicas are added"
    )
    downscale_delay: float = Field(
        600, ge=0, description="seconds of low load before replicas are removed"
    )
    gpus_per_replica: float | None = Field(
        None,
        ge=0,
        description="GPUs per replica; by default pipeline_parallel_size if it is over 1 or device is "
        "cuda, otherwise 0",
    )
    cpus_per_replica: float = Field(1, gt=0, description="CPU cores per replica")
    ongoing_requests: int | None = Field(
        None,
        ge=1,
        description="maximum concurrent requests per replica; by default max_num_seqs, or if that is unset 64 "
        "with a GPU and otherwise 16",
    )
    queued_requests: int = Field(
        64, ge=1, description="maximum requests waiting in a gateway for a replica; more get a 429"
    )
    max_surge_percent: int = Field(
        0,
        ge=0,
        le=100,
        description="percentage of replicas that an update starts before it stops old ones; they "
        "need as many free GPUs",
    )
    gateways: int = Field(1, ge=1, description="processes that route requests to replicas")

    @property
    def checks_hosts(self) -> bool:
        """Whether to check the Host header; ``host`` does not matter, because Ray listens."""
        return bool(self.allowed_hosts) and not self.requires_auth

    @property
    def most_replicas(self) -> int:
        """Maximum number of replicas."""
        return self.max_replicas or self.min_replicas

    @property
    def gpus(self) -> float:
        """GPUs per replica."""
        if self.gpus_per_replica is None:
            wants_some = self.device == "cuda" or self.pipeline_parallel_size > 1
            return float(self.pipeline_parallel_size if wants_some else 0)
        return self.gpus_per_replica

    @property
    def ongoing(self) -> int:
        """Maximum concurrent requests per replica."""
        chosen = ONGOING_GPU if self.gpus else ONGOING_CPU
        return self.ongoing_requests or self.max_num_seqs or chosen

    @property
    def replica_slots(self) -> int:
        """Slots per gateway: requests that it may have at replicas."""
        return math.ceil(self.most_replicas * self.ongoing / self.gateways)

    @property
    def requests_in_gateway(self) -> int:
        """Maximum requests per gateway: at replicas, waiting, and ``max_connections`` others."""
        return self.replica_slots + self.queued_requests + self.max_connections

    @model_validator(mode="after")
    def _at_most_is_no_less(self) -> Self:
        if self.most_replicas < self.min_replicas:
            raise PydanticCustomError(
                "too_few_replicas", "max_replicas must be at least min_replicas"
            )
        return self

    @model_validator(mode="after")
    def _layers_have_gpus(self) -> Self:
        if self.device == "cuda" and not self.gpus:
            raise PydanticCustomError(
                "no_gpus", "device is cuda, but gpus_per_replica is 0; unset one of them"
            )
        if self.device == "cpu" and self.pipeline_parallel_size > 1:
            raise PydanticCustomError(
                "no_gpus",
                "pipeline_parallel_size needs GPUs, but device is cpu; unset one of them",
            )
        if 1 < self.pipeline_parallel_size != self.gpus:
            raise PydanticCustomError(
                "too_few_gpus",
                "pipeline_parallel_size is {size}, but gpus_per_replica is {gpus}; unset gpus_per_replica",
                {"size": self.pipeline_parallel_size, "gpus": self.gpus},
            )
        return self

    @model_validator(mode="after")
    def _ray_listens(self) -> Self:
        if not (self.requires_auth or self.insecure):
            raise unprotected(
                "Ray",
                "PHI3V_API_KEY, PHI3V_API_KEYS_FILE or PHI3V_ENTRA_TENANT, or PHI3V_INSECURE=1",
            )
        if self.needs_generated_key:
            raise PydanticCustomError(
                "generated_key",
                "generated_key_file is local to one machine, but replicas run on many; set PHI3V_API_KEY "
                "to the key instead",
            )
        if self.ssl_certfile:
            raise PydanticCustomError(
                "tls",
                "Ray's proxies do not support ssl_certfile; unset it and terminate TLS in front of them",
            )
        return self
