"""Options for loading and sizing the engine. Plain values; does not import torch.

Each option is declared only here, with the name of its command-line flag.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "int4"]
Device = Literal["auto", "cpu", "cuda"]

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options that the engine uses unchanged.

    Attributes:
        max_num_seqs: maximum number of sequences in a batch.
        max_waiting: maximum number of waiting sequences; more are refused.
        max_waiting_tokens: maximum number of prompt tokens in flight; more are refused.
        max_waiting_memory: maximum GiB of images and log probabilities in flight.
        request_timeout: seconds that a request may take, including waiting.
        prefill_chunk: maximum number of prefill tokens in a step; fewer if they would stall streams.
        max_output_tokens: default of a request's ``max_tokens``.
        prefix_caching: reuse cached blocks for prompts that begin alike.
        embedding_cache_memory: GiB for cached image embeddings; 0 disables the cache.
        deterministic: results are bit-identical regardless of batching, in any dtype; slower.
        prompt_lookup: guess tokens from the prompt and the answer, and verify several per step.
    """

    max_num_seqs: int = 16
    max_waiting: int = 256
    max_waiting_tokens: int = 2_000_000
    max_waiting_memory: float = 2
    request_timeout: float = 1800
    prefill_chunk: int = 512
    max_output_tokens: int = 4096
    prefix_caching: bool = True
    embedding_cache_memory: float = 0.5
    deterministic: bool = False
    prompt_lookup: bool = True

    @property
    def max_waiting_bytes(self) -> int:
        """``max_waiting_memory`` in bytes."""
        return int(self.max_waiting_memory * GIB)

    @property
    def embedding_cache_bytes(self) -> int:
        """``embedding_cache_memory`` in bytes."""
        return int(self.embedding_cache_memory * GIB)


@dataclass(frozen=True)
class LoadOptions(EngineOptions):
    """What to load, and how much memory it may use; None means "choose for this machine".

    Attributes:
        model: a checkpoint's directory or hub id.
        revision: of the Hub's model; None is the pinned one, or ``main``.
        lora: an adapter's directory or hub id, to merge into the weights.
        lora_revision: of the Hub's adapter; None is ``main``.
        dtype: of the weights.
        device: where the model runs.
        quantization: of the weights of the decoder's linear layers.
        max_model_len: longest sequence (prompt and answer), in tokens.
        pipeline_parallel_size: number of GPUs that the decoder's layers are spread over.
        gpu_memory_utilization: fraction of the GPU memory free at startup that may be used.
        kv_cache_memory: size of the KV cache in GiB.
    """

    model: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None
    dtype: DType = "auto"
    device: Device = "auto"
    quantization: Quantization = "none"
    max_model_len: int | None = None
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    kv_cache_memory: float | None = None

    @property
    def kv_cache_bytes(self) -> int | None:
        """``kv_cache_memory`` in bytes."""
        return None if self.kv_cache_memory is None else int(self.kv_cache_memory * GIB)


@dataclass(frozen=True)
class ModelInfo:
    """Name and provider of the model, and the adapter merged into it, for ``/info``."""

    name: str
    provider: str
    adapter: str | None = None


@dataclass(frozen=True)
class EngineConfig(EngineOptions):
    """The engine's options, and sizes that follow from the available memory.

    Attributes:
        max_model_len: longest sequence (prompt and answer), in tokens.
        block_size: tokens in a KV block.
        num_blocks: number of KV blocks; enough for at least one sequence of ``max_model_len``.
        jump_ahead: emit the tokens that a grammar forces without sampling them.
    """

    max_model_len: int
    block_size: int = 16
    num_blocks: int = 0
    jump_ahead: bool = True

    def __post_init__(self) -> None:
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError(
                f"{self.num_blocks} blocks of {self.block_size} slots cannot hold one sequence of "
                f"max_model_len {self.max_model_len}"
            )

    def longest_answer(self, prompt_tokens: int, max_tokens: int | None) -> int:
        """Maximum number of tokens of an answer, for a prompt length and a request's ``max_tokens``."""
        return min(max_tokens or self.max_output_tokens, self.max_model_len - prompt_tokens)

    @classmethod
    def of(
        cls, options: EngineOptions, max_model_len: int, block_size: int, num_blocks: int
    ) -> EngineConfig:
        """Add sizes to options; for the arguments see the attributes."""
        given = {field.name: getattr(options, field.name) for field in fields(EngineOptions)}
        return cls(max_model_len, block_size, num_blocks, **given)
