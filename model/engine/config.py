"""What to load and how large the engine may be. Plain values; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "int4"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class LoadOptions:
    """What to load and how much room it may take; None means "choose for this machine".

    Attributes:
        model: a checkpoint's directory or hub id.
        revision: of the hub's model; None is the pinned one, or the newest.
        quantization: of the decoder's linear layers' weights.
        max_waiting_gib: memory for images and log probabilities of all answers in the making, in GiB.
        pipeline_parallel_size: GPUs that the decoder's layers are spread over.
        gpu_memory_utilization: share of the GPU memory that is free at the start.
        kv_cache_gib: memory for KV blocks, in GiB.
        embedding_cache_gib: memory for image embeddings kept after use, in GiB; 0 keeps none.

    The others are as in ``EngineConfig``.
    """

    model: str
    revision: str | None = None
    dtype: DType = "auto"
    device: Device = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 16
    max_waiting: int = 256
    max_waiting_tokens: int = 2_000_000
    max_waiting_gib: float = 2
    request_timeout: float = 1800
    prefill_chunk: int = 512
    default_max_tokens: int = 4096
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    kv_cache_gib: float | None = None
    prefix_caching: bool = True
    embedding_cache_gib: float = 0.5
    deterministic: bool = False
    prompt_lookup: bool = True
    quantization: Quantization = "none"


@dataclass(frozen=True)
class ModelInfo:
    """Who the model is, for ``/info``."""

    name: str
    provider: str


@dataclass(frozen=True)
class EngineConfig:
    """Sizes that bound the engine, all resolved.

    Attributes:
        max_model_len: longest sequence, prompt and answer, in tokens.
        max_num_seqs: sequences computed together in one batch.
        max_waiting: requests that may wait beyond those running before new ones are refused.
        max_waiting_tokens: prompt tokens of all answers in the making before new ones are refused.
        max_waiting_bytes: the same for the memory of their images and log probabilities.
        request_timeout: seconds that an answer may take.
        prefill_chunk: most prefill tokens in one step; fewer where they would stall many streams.
        default_max_tokens: answer length when the request names none.
        block_size: slots in a KV block.
        num_blocks: KV blocks in all; they hold at least one sequence of ``max_model_len``.
        prefix_caching: whether what earlier requests computed is used by those that start alike.
        embedding_cache_bytes: memory for image embeddings kept after use.
        deterministic: results equal to the last bit alone and in any batch, in any dtype; slower,
            and without the prefix cache, whose hits would change how the rest is computed.
        prompt_lookup: whether tokens are guessed from the prompt and the answer so far, and several
            verified in one step.
        jump_ahead: whether tokens that a grammar forces are computed together.
    """

    max_model_len: int
    max_num_seqs: int = 16
    max_waiting: int = 256
    max_waiting_tokens: int = 2_000_000
    max_waiting_bytes: int = 2 << 30
    request_timeout: float = 1800
    prefill_chunk: int = 512
    default_max_tokens: int = 4096
    block_size: int = 16
    num_blocks: int = 0
    prefix_caching: bool = True
    embedding_cache_bytes: int = 0
    deterministic: bool = False
    prompt_lookup: bool = True
    jump_ahead: bool = True

    def __post_init__(self) -> None:
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError(
                f"{self.num_blocks} blocks of {self.block_size} slots cannot hold one sequence of "
                f"max_model_len {self.max_model_len}"
            )
