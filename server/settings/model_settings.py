"""Settings shared by the server and batches: model, engine and request limits."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

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
        description="branch, tag or commit on the hub; by default the pinned commit for Microsoft's "
        "models, otherwise main",
    ),
]


def check_hosts(hosts: list[str]) -> list[str]:
    """Validate hosts for pydantic; returns them unchanged."""
    for host in hosts:
        if parse_host(host) is None:
            raise PydanticCustomError(
                "no_host",
                "{host} is not a valid host; use HOST or HOST:PORT, such as host.example.com",
                {"host": host},
            )
    return hosts


class CommandSettings(BaseSettings):
    """How all commands read flags and variables."""

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
    """Model, engine and request limits."""

    throughput: ClassVar[bool] = False  # see model.LoadOptions

    model: str = Field(
        "demo",
        min_length=1,
        description="checkpoint: a directory, a model id on the Hugging Face Hub such as "
        "microsoft/Phi-3-vision-128k-instruct, or 'demo' for the demo model",
    )
    revision: Revision = None
    lora: str | None = Field(
        None,
        min_length=1,
        description="adapter to merge into the weights while loading: a directory or a hub id",
    )
    lora_revision: str | None = Field(
        None, min_length=1, description="branch, tag or commit of the adapter on the hub"
    )
    served_model_name: str | None = Field(
        None, description="model name in /info and responses; the checkpoint's by default"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="data type of the weights; auto uses the checkpoint's, or float32 on older CPUs",
    )
    quantization: Literal["none", "int8", "int4"] = Field(
        "none",
        description="quantization of the decoder's weights; saves memory, changes answers slightly",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="device that runs the model; auto uses a GPU if the machine has one, and refuses "
        "one that torch cannot use",
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, description="number of GPUs to split the decoder's layers across"
    )
    max_model_len: int | None = Field(
        None,
        ge=2,
        description="maximum length of prompt plus answer, in tokens; as much as fits by default",
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        description="maximum sequences computed per step; by default 16 on CPUs, and 16 to 256 on GPUs, "
        "one for each 512 tokens that fit",
    )
    prefill_chunk: int | None = Field(
        None,
        ge=1,
        description="maximum prompt tokens computed per step; by default 512 on CPUs, 2048 on GPUs, and "
        "8192 on GPUs from 70 GiB",
    )
    max_output_tokens: int = Field(
        4096, ge=1, description="max_tokens for requests that do not set it"
    )
    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description="fraction of the GPU memory free at startup that the server may use",
    )
    kv_cache_memory: float | None = Field(
        None,
        gt=0,
        description="GiB for the KV cache; by default all memory that is left, on CPUs a quarter of it",
    )
    images_per_prompt: int = Field(
        1,
        ge=1,
        description="maximum images the model sees at once, the last of a conversation; more than 1 only "
        "for models trained on several, such as Phi-3.5-vision",
    )
    prefix_caching: bool = Field(
        True, description="reuse the KV cache of earlier requests for prompts that begin alike"
    )
    embedding_cache_memory: float = Field(
        0.5, ge=0, description="GiB for cached image embeddings; 0 disables the cache"
    )
    deterministic: bool = Field(
        False,
        description="make answers bit-identical regardless of batching, in any dtype; slower",
    )
    prompt_lookup: bool = Field(
        True, description="guess tokens from the prompt and verify several in one step"
    )
    generation_config: Literal["auto", "none"] = Field(
        "auto",
        description="whether the checkpoint's generation_config.json sets the defaults of parameters: "
        "auto or none",
    )
    trust_priority: bool = Field(
        False,
        description="let the parameter priority order the waiting requests of all callers, not only "
        "a caller's own",
    )
    allow_image_hosts: Words = Field(
        [],
        description="hosts to fetch images from, as HOST or HOST:PORT, comma-separated; none by "
        "default; private addresses are always refused",
    )
    drain_timeout: int = Field(
        30, ge=0, description="seconds for requests in flight to finish at shutdown"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="log format: plain text, or one JSON object per line"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="minimum level of the messages to log"
    )
    # Limits.
    max_body_mb: float = Field(32, gt=0, description="maximum request body, in MB")
    max_messages: int = Field(1024, ge=1, description="maximum messages in a conversation")
    max_images: int = Field(256, ge=1, description="maximum images in a conversation")
    max_image_pixels: int = Field(
        50_000_000, ge=1, description="maximum size of a prompt's images together, in pixels"
    )
    image_timeout: float = Field(
        10, gt=0, description="seconds to fetch an image, and to decode it"
    )
    max_waiting: int = Field(256, ge=0, description="maximum waiting sequences; more get a 429")
    max_waiting_tokens: int = Field(
        2_000_000,
        ge=1,
        description="maximum prompt tokens of all requests in flight; more get a 429",
    )
    max_waiting_memory: float = Field(
        2,
        gt=0,
        description="GiB for images and log probabilities of all requests in flight; more get a 429",
    )
    request_timeout: float = Field(
        1800, gt=0, description="seconds a request may take, including time in the queue"
    )

    @property
    def max_body_bytes(self) -> int:
        """Maximum request body, in bytes."""
        return int(self.max_body_mb * 1e6)

    @field_validator("allow_image_hosts")
    @classmethod
    def _hosts_are_names(cls, hosts: list[str]) -> list[str]:
        return check_hosts(hosts)
