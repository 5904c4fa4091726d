"""The settings that serving and batches share: the model, its engine, and what a request may cost."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.settings.hosts import parse_host


def _split_at_commas(value: Any) -> Any:
    parts = [value] if isinstance(value, str) else value
    return [word.strip() for part in parts for word in part.split(",") if word.strip()]


# Comma-separated words.
Words = Annotated[list[str], NoDecode, BeforeValidator(_split_at_commas)]

Revision = Annotated[
    str | None,
    Field(
        min_length=1,
        description="branch, tag or commit of the hub's model; by default the commit that is pinned "
        "for Microsoft's models, or main",
    ),
]


def check_hosts(hosts: list[str]) -> list[str]:
    """The hosts themselves; for pydantic's validators, raises an error if one is not a host."""
    for host in hosts:
        if parse_host(host) is None:
            raise PydanticCustomError(
                "no_host",
                "{host} is no host; give names such as host.example.com, or with a port",
                {"host": host},
            )
    return hosts


class CommandSettings(BaseSettings):
    """How every command reads flags and variables."""

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


class ModelSettings(CommandSettings):
    """The model and its engine, and what a request may cost."""

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
        description="answers bit-identical regardless of batching, in any dtype; slower",
    )
    prompt_lookup: bool = Field(
        True, description="guess tokens from the prompt and verify several in one step"
    )
    allow_image_hosts: Words = Field(
        [],
        description="hosts that images may be fetched from, HOST or HOST:PORT, comma-separated; "
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
        2_000_000, ge=1, description="prompt tokens of all requests in flight; more get a 429"
    )
    max_waiting_memory: float = Field(
        2,
        gt=0,
        description="GiB for images and log probabilities of all requests in flight; more get a 429",
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
        return check_hosts(hosts)
