"""Settings of the server only: network, authentication and connection limits."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from uuid import UUID

from pydantic import Field, FilePath, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.settings.hosts import is_loopback
from server.settings.model_settings import ModelSettings, Words, check_hosts


def unprotected(cause: str, remedies: str) -> PydanticCustomError:
    """The error for settings that let anyone on the network use the server."""
    return PydanticCustomError(
        "insecure",
        "{cause} lets other machines use the server without authentication; set {remedies}",
        {"cause": cause, "remedies": remedies},
    )


class Settings(ModelSettings):
    """Serve Phi-3-vision through the Azure AI Model Inference and OpenAI chat APIs.

    `phi3v-server download [MODEL]` downloads a checkpoint, `phi3v-server check DIR` checks one,
    `phi3v-server batch INPUT OUTPUT` runs a file of requests, `phi3v-server --version` prints the
    version.

    Every flag is also an environment variable: --max-model-len is PHI3V_MAX_MODEL_LEN. Flags take
    precedence.
    """

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    api_key: SecretStr | None = Field(
        None, description="API key that clients must send; better set as PHI3V_API_KEY or in a file"
    )
    api_keys: SecretStr | None = Field(
        None, description="contents of --api-keys-file; better set as PHI3V_API_KEYS"
    )
    api_keys_file: FilePath | None = Field(
        None,
        description="TOML file of callers, their keys and limits; reloaded when it changes or on SIGHUP",
    )
    generated_key_file: Path | None = Field(
        None,
        description="file with the API key that clients must send if no other key or tenant is set; "
        "created with a random key if it is missing",
    )
    requests_per_minute: int | None = Field(
        None, ge=1, description="maximum requests per minute of each caller; unlimited by default"
    )
    tokens_per_minute: int | None = Field(
        None,
        ge=1,
        description="maximum prompt and answer tokens per minute of each caller; unlimited by default",
    )
    concurrent_requests: int | None = Field(
        None, ge=1, description="maximum concurrent requests of each caller; unlimited by default"
    )
    insecure: bool = Field(
        False, description="allow other machines to use the server without a key or token"
    )
    entra_tenant: UUID | None = Field(
        None, description="id of the tenant whose Entra ID tokens are accepted; none by default"
    )
    entra_audience: Words = Field(
        [], description="accepted audiences of a token, such as api://CLIENT-ID, comma-separated"
    )
    entra_roles: Words = Field(
        [],
        description="app roles, comma-separated, of which a token needs one; not required by default",
    )
    entra_scopes: Words = Field(
        [], description="scopes, comma-separated, of which one is accepted instead of a role"
    )
    entra_authority: str = Field(
        "https://login.microsoftonline.com",
        pattern="^https://",
        description="issuer of the tokens; differs in national clouds",
    )
    ssl_certfile: FilePath | None = Field(
        None, description="certificate chain in PEM format; enables HTTPS"
    )
    ssl_keyfile: FilePath | None = Field(
        None, description="private key in PEM format, if it is not in --ssl-certfile"
    )
    allowed_origins: Words = Field(
        [],
        description="origins of web pages that may call the server (CORS), comma-separated; * allows "
        "all; none by default",
    )
    allowed_hosts: Words = Field(
        [],
        description="Host headers to accept besides localhost when no key is required, as HOST or "
        "HOST:PORT, comma-separated; * allows all",
    )
    isolate_caches: bool = Field(
        False, description="share cached prefixes only between requests of the same caller"
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="OpenTelemetry collector to send traces to by OTLP over HTTP, such as "
        "http://localhost:4318; none by default",
    )
    response_store: bool = Field(
        True, description="keep responses of /v1/responses in memory, so that they can be continued"
    )
    response_store_memory: float = Field(
        0.25, gt=0, description="GiB for stored responses; the oldest are dropped"
    )
    response_store_seconds: float = Field(
        86_400, gt=0, description="seconds a stored response is kept after its last use"
    )
    open_metrics: bool = Field(False, description="serve /metrics without authentication")
    playground: bool = Field(True, description="serve the playground, a chat page, at /")
    # Limits.
    max_connections: int = Field(512, ge=1, description="maximum open connections; more get a 503")
    header_timeout: float = Field(
        20, gt=0, description="seconds for a request's headers to arrive, and for a TLS handshake"
    )
    body_timeout: float = Field(120, gt=0, description="seconds for a request's body to arrive")
    # Longer than the connection pools of common clients.
    idle_timeout: int = Field(75, ge=1, description="seconds before an idle connection is closed")
    write_timeout: float = Field(60, gt=0, description="seconds a client may stall while reading")
    max_bodies_mb: float = Field(
        1024, gt=0, description="MB for all request bodies held in memory; more get a 429"
    )

    @property
    def requires_auth(self) -> bool:
        """Whether requests need a key or token."""
        return self._has_credentials or self.needs_generated_key

    @property
    def checks_hosts(self) -> bool:
        """Whether to check the Host header: without authentication, nothing else stops DNS rebinding."""
        reachable = bool(self.allowed_hosts) or is_loopback(self.host)
        return reachable and not self.requires_auth

    @property
    def needs_generated_key(self) -> bool:
        """Whether ``generated_key_file`` holds the only key."""
        wanted = self.generated_key_file is not None and not self.insecure
        return wanted and not self._has_credentials

    @property
    def _has_credentials(self) -> bool:
        keys = (self.api_key, self.api_keys, self.api_keys_file)
        return self.entra_tenant is not None or any(key is not None for key in keys)

    @field_validator("allowed_hosts")
    @classmethod
    def _names_are_hosts(cls, hosts: list[str]) -> list[str]:
        return hosts if hosts == ["*"] else check_hosts(hosts)

    @field_validator("api_key", "api_keys")
    @classmethod
    def _keys_are_not_blank(cls, keys: SecretStr | None) -> SecretStr | None:
        if (
            keys is not None and not keys.get_secret_value().strip()
        ):  # a missing header would match it
            raise PydanticCustomError("blank_key", "must not be blank; set a key or remove it")
        return keys

    @model_validator(mode="after")
    def _key_has_a_certificate(self) -> Self:
        if self.ssl_keyfile and not self.ssl_certfile:
            raise PydanticCustomError("no_certificate", "--ssl-keyfile requires --ssl-certfile")
        return self

    @model_validator(mode="after")
    def _tokens_are_for_an_audience(self) -> Self:
        if (self.entra_tenant is None) != (not self.entra_audience):
            raise PydanticCustomError(
                "half_of_entra", "--entra-tenant and --entra-audience must be set together"
            )
        if (self.entra_roles or self.entra_scopes) and self.entra_tenant is None:
            raise PydanticCustomError(
                "half_of_entra", "--entra-roles and --entra-scopes require --entra-tenant"
            )
        return self

    @model_validator(mode="after")
    def _others_need_a_key(self) -> Self:
        if not (self.requires_auth or self.insecure or is_loopback(self.host)):
            raise unprotected(
                f"--host {self.host}",
                "PHI3V_API_KEY, --api-keys-file or --entra-tenant, or pass --insecure",
            )
        return self
