"""Options for loading and sizing the engine. Plain values; does not import torch.

Each option is declared only here, with the name of its command-line flag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "int4"]
Device = Literal["auto", "cpu", "cuda"]

GIB = 1 << 30
DEMO = "demo"  # the name of the embedded checkpoint
BLOCK_SIZE = 16  # tokens in a KV block, on every device


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options that the engine uses unchanged.

    Attributes:
        max_waiting: maximum number of waiting sequences; more are refused.
        max_waiting_tokens: maximum number of prompt tokens in flight; more are refused.
        max_waiting_memory: maximum GiB of images and log probabilities in flight.
        request_timeout: seconds that a request may take, including waiting.
        max_output_tokens: default of a request's ``max_tokens``.
        prefix_caching: reuse cached blocks for prompts that begin alike.
        embedding_cache_memory: GiB for cached image embeddings; 0 disables the cache.
        deterministic: results are bit-identical regardless of batching, in any dtype; slower.
        prompt_lookup: guess tokens from the prompt and the answer, and verify several per step.
        trust_priority: a request's priority counts among the requests of all callers.
    """

    max_waiting: int = 256
    max_waiting_tokens: int = 2_000_000
    max_waiting_memory: float = 2
    request_timeout: float = 1800
    max_output_tokens: int = 4096
    prefix_caching: bool = True
    embedding_cache_memory: float = 0.5
    deterministic: bool = False
    prompt_lookup: bool = True
    trust_priority: bool = False

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
        max_num_seqs: maximum number of sequences in a batch.
        prefill_chunk: maximum number of prefill tokens in a step.
        throughput: where sizes are chosen, choose for throughput rather than for short waits.
        pipeline_parallel_size: number of GPUs that the decoder's layers are spread over.
        gpu_memory_utilization: fraction of the GPU memory free at startup that may be used.
        kv_cache_memory: size of the KV cache in GiB.
        images_per_prompt: maximum number of images in a prompt; of more, a conversation's last ones are kept.
        generation_config: whether the checkpoint's ``generation_config.json`` sets default parameters.
    """

    model: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None
    dtype: DType = "auto"
    device: Device = "auto"
    quantization: Quantization = "none"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    prefill_chunk: int | None = None
    throughput: bool = False
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    kv_cache_memory: float | None = None
    images_per_prompt: int = 1
    generation_config: Literal["auto", "none"] = "auto"

    @property
    def kv_cache_bytes(self) -> int | None:
        """``kv_cache_memory`` in bytes."""
        return None if self.kv_cache_memory is None else int(self.kv_cache_memory * GIB)


@dataclass(frozen=True)
class ModelInfo:
    """What is known about the model, for ``/info`` and ``/v1/models``.

    Attributes:
        name: of the model.
        provider: who made it.
        default_parameters: the checkpoint's values for parameters that a request does not set, by name.
        adapter: name of the adapter merged into it, if any.
    """

    name: str
    provider: str
    default_parameters: Mapping[str, float] = field(default_factory=dict)
    adapter: str | None = None


@dataclass(frozen=True)
class EngineConfig(EngineOptions):
    """The engine's options, and sizes that follow from the machine and its memory.

    Attributes:
        max_model_len: longest sequence (prompt and answer), in tokens.
        block_size: tokens in a KV block.
        num_blocks: number of KV blocks; enough for at least one sequence of ``max_model_len``.
        max_num_seqs: maximum number of sequences in a batch.
        prefill_chunk: maximum number of prefill tokens in a step; fewer if they would stall streams.
        jump_ahead: emit the tokens that a grammar forces without sampling them.
    """

    max_model_len: int
    block_size: int = BLOCK_SIZE
    num_blocks: int = 0
    max_num_seqs: int = 16
    prefill_chunk: int = 512
    jump_ahead: bool = True

    def __post_init__(self) -> None:
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError(
                f"{self.num_blocks} blocks of {self.block_size} slots cannot hold one sequence of "
                f"max_model_len {self.max_model_len}"
            )

    def kept_prompt(self, truncate_prompt_tokens: int | None, max_tokens: int | None) -> int | None:
        """How many tokens at the end of a prompt to keep; None keeps all. See ``SamplingParams``."""
        if truncate_prompt_tokens is None or truncate_prompt_tokens > 0:
            return truncate_prompt_tokens
        return self.max_model_len - self.longest_answer(1, max_tokens)

    def longest_answer(self, prompt_tokens: int, max_tokens: int | None) -> int:
        """Maximum number of tokens of an answer, for a prompt length and a request's ``max_tokens``."""
        return min(max_tokens or self.max_output_tokens, self.max_model_len - prompt_tokens)

    @classmethod
    def of(cls, options: EngineOptions, **sizes: int) -> EngineConfig:
        """Add sizes to options; for their names see the attributes."""
        given: dict[str, Any] = {
            each.name: getattr(options, each.name) for each in fields(EngineOptions)
        }
        return cls(**given | sizes)
