"""All settings: command-line flags and ``PHI3V_*`` environment variables, from one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BeforeValidator, Field, FilePath, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.hosts import is_loopback, parse_host


def _parted_by_commas(value: Any) -> Any:
    parts = [value] if isinstance(value, str) else value
    return [word.strip() for part in parts for word in part.split(",") if word.strip()]


# Several words, parted by commas.
Words = Annotated[list[str], NoDecode, BeforeValidator(_parted_by_commas)]

Revision = Annotated[
    str | None,
    Field(
        min_length=1,
        description="branch, tag or commit of the hub's model; by default the commit that is pinned "
        "for Microsoft's models, or main",
    ),
]


def _hosts(hosts: list[str]) -> list[str]:
    for host in hosts:
        if parse_host(host) is None:
            raise PydanticCustomError(
                "no_host",
                "{host} is no host; give names such as host.example.com, or with a port",
                {"host": host},
            )
    return hosts


class ModelSettings(BaseSettings):
    """The model and its engine, and what a request may cost: what serving and batches share."""

    model_config = SettingsConfigDict(
        env_prefix="PHI3V_",
        env_ignore_empty=True,
        extra="ignore",
        cli_prog_name="phi3v-server",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        frozen=True,
    )

    model: str = Field(
        "demo",
        min_length=1,
        description="checkpoint: a directory, a hub id such as "
        "microsoft/Phi-3-vision-128k-instruct, or 'demo' for the embedded one",
    )
    revision: Revision = None
    served_model_name: str | None = Field(
        None, description="name in /info and answers; the checkpoint's own by default"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the weights; auto is the checkpoint's, or float32 on older CPUs"
    )
    quantization: Literal["none", "int8", "int4"] = Field(
        "none",
        description="of the decoder's weights: less memory, and answers that differ a little",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    pipeline_parallel_size: int = Field(
        1, ge=1, description="GPUs that the decoder's layers are spread over"
    )
    max_model_len: int | None = Field(
        None, ge=2, description="longest prompt plus answer, in tokens; what fits by default"
    )
    max_num_seqs: int = Field(16, ge=1, description="answers computed together in one batch")
    prefill_chunk: int = Field(
        512, ge=1, description="prompt tokens computed in one step, beside running answers"
    )
    max_output_tokens: int = Field(
        4096, ge=1, description="answer length when a request names no max_tokens"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of the GPU memory free at the start that may be taken"
    )
    kv_cache_memory: float | None = Field(
        None,
        gt=0,
        description="GiB for keys and values; what is left by default, on CPUs a quarter",
    )
    prefix_caching: bool = Field(
        True, description="use what earlier requests computed for prompts that start alike"
    )
    embedding_cache_memory: float = Field(
        0.5, ge=0, description="GiB for embeddings of images seen before; 0 keeps none"
    )
    deterministic: bool = Field(
        False,
        description="answers equal to the last bit alone and in any batch, in any dtype; slower",
    )
    prompt_lookup: bool = Field(
        True, description="guess tokens from the prompt and verify several in one step"
    )
    allow_image_hosts: Words = Field(
        [],
        description="hosts that images may be fetched from, HOST or HOST:PORT, parted by commas; "
        "none by default, private addresses never",
    )
    drain_timeout: int = Field(
        30, ge=0, description="seconds that running answers get to finish at shutdown"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="of the log: lines for people, or a JSON object a line"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe messages that are logged"
    )
    # Bounds.
    max_body_mb: float = Field(32, gt=0, description="largest request body, in MB")
    max_messages: int = Field(1024, ge=1, description="most messages in a conversation")
    max_images: int = Field(256, ge=1, description="most images in a conversation")
    max_image_pixels: int = Field(50_000_000, ge=1, description="largest image, in pixels")
    image_timeout: float = Field(
        10, gt=0, description="seconds to decode an image, and to fetch it"
    )
    max_waiting: int = Field(256, ge=0, description="answers that may wait; more get a 429")
    max_waiting_tokens: int = Field(
        2_000_000, ge=1, description="prompt tokens of all answers in the making; more get a 429"
    )
    max_waiting_memory: float = Field(
        2,
        gt=0,
        description="GiB for images and log probabilities of all answers in the making; more get a 429",
    )
    request_timeout: float = Field(
        1800, gt=0, description="seconds that an answer may take, its wait included"
    )

    @property
    def max_body_bytes(self) -> int:
        """Largest body, in bytes."""
        return int(self.max_body_mb * 1e6)

    @field_validator("allow_image_hosts")
    @classmethod
    def _hosts_are_names(cls, hosts: list[str]) -> list[str]:
        return _hosts(hosts)


class Settings(ModelSettings):
    """Serve Phi-3-vision behind the Azure AI Model Inference and OpenAI chat APIs.

    `phi3v-server download [MODEL]` downloads a checkpoint, `phi3v-server check DIR` checks one,
    `phi3v-server batch INPUT OUTPUT` answers a file of requests.

    Every flag is also an environment variable: --max-model-len is PHI3V_MAX_MODEL_LEN. A flag wins.
    """

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    api_key: SecretStr | None = Field(
        None, description="key that clients must send; better set as PHI3V_API_KEY or in a file"
    )
    api_keys: SecretStr | None = Field(
        None, description="what --api-keys-file has, as a text; better set as PHI3V_API_KEYS"
    )
    api_keys_file: FilePath | None = Field(
        None,
        description="TOML file of callers, their keys and limits; read again when it changes or at "
        "SIGHUP",
    )
    generated_key_file: Path | None = Field(
        None,
        description="file of the key that clients must send where no other key or tenant is set; "
        "made with a random key where it is missing",
    )
    requests_per_minute: int | None = Field(
        None, ge=1, description="requests that each caller may send in a minute; any by default"
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, description="tokens, prompts' and answers', of each caller in a minute"
    )
    concurrent_requests: int | None = Field(
        None, ge=1, description="requests that each caller may have running at a time"
    )
    insecure: bool = Field(
        False, description="let other machines use the server without a key or token"
    )
    entra_tenant: UUID | None = Field(
        None, description="id of the tenant whose Entra ID tokens are taken; none by default"
    )
    entra_audience: Words = Field(
        [], description="what a token must be for, such as api://CLIENT-ID; several by commas"
    )
    entra_roles: Words = Field(
        [], description="app roles one of which a token must have; all tokens will do by default"
    )
    entra_scopes: Words = Field([], description="scopes one of which will do instead of a role")
    entra_authority: str = Field(
        "https://login.microsoftonline.com",
        pattern="^https://",
        description="who issues the tokens; another one in national clouds",
    )
    ssl_certfile: FilePath | None = Field(
        None, description="certificate chain, in PEM; with it the server speaks https"
    )
    ssl_keyfile: FilePath | None = Field(
        None, description="the certificate's private key, in PEM, where it is in another file"
    )
    allowed_origins: Words = Field(
        [],
        description="web origins whose pages may call the server (CORS), parted by commas; * for "
        "all, none by default",
    )
    allowed_hosts: Words = Field(
        [],
        description="names of the server, besides localhost, that requests without a key may be "
        "for, HOST or HOST:PORT, parted by commas; * for all",
    )
    isolate_caches: bool = Field(
        False, description="share what was computed before only between requests of one caller"
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="OpenTelemetry collector that gets traces by OTLP over HTTP, such as "
        "http://localhost:4318; none by default",
    )
    open_metrics: bool = Field(False, description="let /metrics be read without the API key")
    playground: bool = Field(True, description="serve a page to talk to the model, at /")
    # Bounds.
    max_connections: int = Field(512, ge=1, description="open connections; more get a 503")
    header_timeout: float = Field(
        20, gt=0, description="seconds for a request's head to arrive, and for a TLS handshake"
    )
    body_timeout: float = Field(120, gt=0, description="seconds for a request's body to arrive")
    # Longer than clients' pools keep theirs.
    idle_timeout: int = Field(75, ge=1, description="seconds that an idle connection stays open")
    write_timeout: float = Field(
        60, gt=0, description="seconds that a client may take no part of its answer"
    )
    max_bodies_mb: float = Field(
        1024, gt=0, description="MB of all bodies held at a time; more get a 429"
    )

    @property
    def requires_auth(self) -> bool:
        """Whether requests must say whose they are."""
        return self._has_credentials or self.needs_generated_key

    @property
    def checks_hosts(self) -> bool:
        """Whether requests must be for a name of the server, as nothing else tells whose they are."""
        reachable = bool(self.allowed_hosts) or is_loopback(self.host)
        return reachable and not self.requires_auth

    @property
    def needs_generated_key(self) -> bool:
        """Whether the key of ``generated_key_file`` is the only one."""
        wanted = self.generated_key_file is not None and not self.insecure
        return wanted and not self._has_credentials

    @property
    def _has_credentials(self) -> bool:
        keys = (self.api_key, self.api_keys, self.api_keys_file)
        return self.entra_tenant is not None or any(key is not None for key in keys)

    @field_validator("allowed_hosts")
    @classmethod
    def _names_are_hosts(cls, hosts: list[str]) -> list[str]:
        return hosts if hosts == ["*"] else _hosts(hosts)

    @field_validator("api_key", "api_keys")
    @classmethod
    def _keys_are_not_blank(cls, keys: SecretStr | None) -> SecretStr | None:
        if keys is not None and not keys.get_secret_value().strip():  # requests without one have it
            raise PydanticCustomError("blank_key", "it is blank; set a key, or leave it out")
        return keys

    @model_validator(mode="after")
    def _key_has_a_certificate(self) -> Self:
        if self.ssl_keyfile and not self.ssl_certfile:
            raise PydanticCustomError("no_certificate", "--ssl-keyfile needs --ssl-certfile too")
        return self

    @model_validator(mode="after")
    def _tokens_are_for_an_audience(self) -> Self:
        if (self.entra_tenant is None) != (not self.entra_audience):
            raise PydanticCustomError(
                "half_of_entra", "--entra-tenant and --entra-audience need each other"
            )
        if (self.entra_roles or self.entra_scopes) and self.entra_tenant is None:
            raise PydanticCustomError(
                "half_of_entra", "--entra-roles and --entra-scopes need --entra-tenant"
            )
        return self

    @model_validator(mode="after")
    def _others_need_a_key(self) -> Self:
        if not (self.requires_auth or self.insecure or is_loopback(self.host)):
            raise PydanticCustomError(
                "insecure",
                "--host {host} lets other machines use the server and nothing asks who they are; "
                "set PHI3V_API_KEY, --api-keys-file or --entra-tenant, or say --insecure",
                {"host": self.host},
            )
        return self
