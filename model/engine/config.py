"""What to load and how large the engine may be. Plain values; imports no torch.

An option is declared once, here, under the name of its command-line flag.
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
    """Options that the engine takes as they are given.

    Attributes:
        max_num_seqs: sequences computed together in one batch.
        max_waiting: sequences that may wait beyond those running before new ones are refused.
        max_waiting_tokens: prompt tokens of all sequences in flight before new ones are refused.
        max_waiting_memory: the same for their images and log probabilities, in GiB.
        request_timeout: seconds that a request may take, waiting included.
        prefill_chunk: most prefill tokens in one step; fewer where they would stall many streams.
        max_output_tokens: answer length when a request names none.
        prefix_caching: whether what earlier requests computed is used by those that start alike.
        embedding_cache_memory: for image embeddings kept after use, in GiB; 0 keeps none.
        deterministic: results bit-identical regardless of batching, in any dtype; slower.
        prompt_lookup: whether tokens are guessed from the prompt and the answer so far, and several
            verified in one step.
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
    """What to load and how much room it may take; None means "choose for this machine".

    Attributes:
        model: a checkpoint's directory or hub id.
        revision: of the hub's model; None is the pinned one, or the newest.
        dtype: of the weights.
        device: where the model runs.
        quantization: of the decoder's linear layers' weights.
        max_model_len: longest sequence, prompt and answer, in tokens.
        pipeline_parallel_size: GPUs that the decoder's layers are spread over.
        gpu_memory_utilization: share of the GPU memory that is free at the start.
        kv_cache_memory: for KV blocks, in GiB.
    """

    model: str
    revision: str | None = None
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
    """Who the model is, for ``/info``."""

    name: str
    provider: str


@dataclass(frozen=True)
class EngineConfig(EngineOptions):
    """The engine's options, and the sizes that follow from the memory there is.

    Attributes:
        max_model_len: longest sequence, prompt and answer, in tokens.
        block_size: slots in a KV block.
        num_blocks: KV blocks in all; they hold at least one sequence of ``max_model_len``.
        jump_ahead: whether tokens that a grammar forces are computed together.
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
        """Most tokens of an answer to a prompt of that length, if ``max_tokens`` are asked for."""
        return min(max_tokens or self.max_output_tokens, self.max_model_len - prompt_tokens)

    @classmethod
    def of(
        cls, options: EngineOptions, max_model_len: int, block_size: int, num_blocks: int
    ) -> EngineConfig:
        """The options with sizes; the arguments are those of the attributes."""
        given = {field.name: getattr(options, field.name) for field in fields(EngineOptions)}
        return cls(max_model_len, block_size, num_blocks, **given)
