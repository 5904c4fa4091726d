"""All settings: command-line flags and ``PHI3V_*`` environment variables, from one table."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, FilePath, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Serve Phi-3-vision behind the Azure AI Model Inference and OpenAI chat APIs.

    Every flag is also an environment variable: --max-model-len is PHI3V_MAX_MODEL_LEN. A flag wins.
    """

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
    served_model_name: str | None = Field(
        None, description="name in /info and answers; the checkpoint's own by default"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the weights; auto is the checkpoint's, or float32 on older CPUs"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    api_key: SecretStr | None = Field(
        None, description="key that clients must send; none by default"
    )
    ssl_certfile: FilePath | None = Field(
        None, description="certificate chain, in PEM; with it the server speaks https"
    )
    ssl_keyfile: FilePath | None = Field(
        None, description="the certificate's private key, in PEM, where it is in another file"
    )
    allowed_origins: Annotated[list[str], NoDecode] = Field(
        [],
        description="web origins whose pages may call the server (CORS), parted by commas; * for "
        "all, none by default",
    )
    max_model_len: int | None = Field(
        None, ge=2, description="longest prompt plus answer, in tokens; what fits by default"
    )
    max_num_seqs: int = Field(16, ge=1, description="answers computed together in one batch")
    max_waiting: int = Field(256, ge=0, description="answers that may wait; more get a 429")
    prefill_chunk: int = Field(
        512, ge=1, description="prompt tokens computed in one step, beside running answers"
    )
    max_output_tokens: int = Field(
        4096, ge=1, description="answer length when a request names no max_tokens"
    )
    kv_cache_memory: float | None = Field(
        None, gt=0, description="GiB for keys and values; a share of the free memory by default"
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
    open_metrics: bool = Field(False, description="let /metrics be read without the API key")
    playground: bool = Field(True, description="serve a page to talk to the model, at /")
    max_body_mb: float = Field(32, gt=0, description="largest request body, in MB")
    max_image_pixels: int = Field(50_000_000, ge=1, description="largest image, in pixels")
    max_messages: int = Field(1024, ge=1, description="most messages in a conversation")
    drain_timeout: int = Field(
        30, ge=0, description="seconds that running answers get to finish at shutdown"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe messages that are logged"
    )

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _parted_by_commas(cls, value: Any) -> Any:
        parts = [value] if isinstance(value, str) else value
        return [origin.strip() for part in parts for origin in part.split(",") if origin.strip()]

    @model_validator(mode="after")
    def _key_has_a_certificate(self) -> Self:
        if self.ssl_keyfile and not self.ssl_certfile:
            raise PydanticCustomError("no_certificate", "--ssl-keyfile needs --ssl-certfile too")
        return self
